"""Helm over the project's chart, without a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "shift"
CRD_FILE = CHART / "crds" / "shiftdeployments.yaml"
NAMESPACE = "shift-system"

Object = dict[str, Any]


@cache
def helm_path() -> str:
    sys.path.append(str(ROOT))
    from localcluster import settings, tools

    return str(tools.helm_path(settings.from_environment()))


def helm(*arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Never touches a cluster unless it is named."""
    chosen = (f"--kubeconfig={kubeconfig or os.devnull}",)
    # A proxy of the machine must not stand between loopback addresses.
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    return subprocess.run(
        [helm_path(), *arguments, *chosen],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def rendered_text(*arguments: str) -> str:
    done = helm("template", "shift", str(CHART), "--namespace", NAMESPACE, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(*arguments: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(rendered_text(*arguments)) if document]


def of_kind(documents: list[Object], kind: str) -> list[Object]:
    return [document for document in documents if document["kind"] == kind]


def operator_rules(documents: list[Object]) -> list[Object]:
    """Of the operator in the namespaces that it serves; not the leader's, not those of people."""
    roles = of_kind(documents, "ClusterRole") or of_kind(documents, "Role")
    own = [r for r in roles if not r["metadata"]["name"].endswith(("-leader", "-edit", "-view"))]
    found: list[Object] = own[0]["rules"]
    return found
