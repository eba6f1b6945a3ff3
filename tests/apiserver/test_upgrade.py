"""docs/UPGRADE.md, done: an old CRD becomes the present one under live objects, and nothing is stuck at the end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.chart import CHART, CRD_FILE, ROOT, helm
from helpers.control_plane.plane import ControlPlane, control_plane, find_binary
from helpers.control_plane.release import RELEASE, released_operator
from helpers.control_plane.waiting import collection, condition, resource, wait_for

from localcluster.api import ApiError

pytestmark = pytest.mark.timeout(180)

Object = dict[str, Any]

PAGE = (ROOT / "docs" / "UPGRADE.md").read_text()
OLD_CRD = Path(__file__).resolve().parent / "crds" / "before-rollouts.yaml"
NAMESPACE = "shift-system"  # as the page has it
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/shiftdeployments.shiftparallel.dev"


@pytest.fixture(scope="module")
def old_plane(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One of its own, without pods, and without a CRD."""
    kube = find_binary()
    assert kube is not None, "the other plane runs"
    with control_plane(kube, tmp_path_factory.mktemp("old-plane")) as started:
        started.admin.call("DELETE", CRD)
        wait_for("the end of the present CRD", lambda: started.admin.get_or_none(CRD) is None)
        yield started


def commands(heading: str) -> list[list[str]]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line.split() for block in re.findall(r"```\n(.*?)```", section, re.S) for line in block.splitlines()]


def run(plane: ControlPlane, command: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    """From the repository's root, as a reader would."""
    program, *arguments = command
    if program == "helm":
        arguments = [str(CHART) if word == "charts/shift" else word for word in arguments]
        return helm(*arguments, *more, kubeconfig=plane.admin_kubeconfig)
    assert program == "kubectl", command
    path = Path(sys.executable).parent / "kubectl"
    environment = {**os.environ, "KUBECONFIG": str(plane.admin_kubeconfig), "NO_PROXY": "*", "no_proxy": "*"}
    return subprocess.run(
        [str(path), *arguments, *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def succeed(plane: ControlPlane, command: list[str], *more: str) -> None:
    done = run(plane, command, *more)
    assert done.returncode == 0, done.stderr


def old_object(name: str) -> Object:
    """As somebody wrote it then."""
    return {
        "apiVersion": "shiftparallel.dev/v1alpha1",
        "kind": "ShiftDeployment",
        "metadata": {"name": name, "labels": {"team": "ml"}},
        "spec": {
            "model": {"uri": "pvc://models/a.gguf"},
            "parallelism": {"gpus": 2},
            "replicas": 0,
            "autoscaling": {"mode": "Recommend", "min": 1, "max": 3, "windows": {"scaleOutSeconds": 20}},
            "slo": {"ttftMs": 900},
        },
    }


def old_chart(folder: Path) -> Path:
    """Today's but for its CRD."""
    chart = folder / "charts" / "shift"
    shutil.copytree(CHART, chart)
    shutil.copy(OLD_CRD, chart / "crds" / CRD_FILE.name)
    return chart


def test_life_of_an_installation(old_plane: ControlPlane, tmp_path: Path) -> None:
    plane = old_plane
    [install] = commands("Install")
    chart = str(old_chart(tmp_path))
    succeed(plane, [chart if word == "charts/shift" else word for word in install], "--set", "replicas=0")
    wait_for("the old CRD", lambda: plane.admin.problem(collection(NAMESPACE)) is None)
    for name in ("one", "two"):
        plane.admin.call("POST", collection(NAMESPACE), old_object(name))
    newer = {**old_object("newer"), "spec": {**old_object("newer")["spec"], "rollout": {"strategy": "Surge"}}}
    strict = f"{collection(NAMESPACE)}?fieldValidation=Strict"
    with pytest.raises(ApiError, match="unknown field"):
        plane.admin.call("POST", strict, newer)
    before = {name: resource(plane, NAMESPACE, name) for name in ("one", "two")}
    crd_before = plane.admin.get(CRD)["metadata"]["generation"]

    new_crd, upgrade = commands("Upgrade")
    succeed(plane, upgrade, "--set", "replicas=0")
    assert plane.admin.get(CRD)["metadata"]["generation"] == crd_before, "Helm leaves it: hence the other command"
    unforced = run(plane, [word for word in new_crd if word != "--force-conflicts"])
    assert "conflict" in unforced.stderr, "the page says why it is needed"
    for command, more in ((new_crd, ()), (upgrade, ("--set", "replicas=0"))):
        succeed(plane, command, *more)
    wait_for("the new CRD", lambda: present(plane))
    for name, old in before.items():
        now = resource(plane, NAMESPACE, name)
        assert now["metadata"]["uid"] == old["metadata"]["uid"]
        assert now["metadata"]["generation"] == old["metadata"]["generation"], "stored as it was"
        assert lost(old["spec"], now["spec"]) == {}
    plane.admin.call("POST", f"{strict}&dryRun=All", newer)

    with released_operator(plane, NAMESPACE, (), tmp_path / "operator.log") as operator:
        for name in before:
            wait_for(f"{name} to be served", partial(serves, plane, name))
        assert "ERROR" not in operator.log

    # Gone, with objects and their children there.
    [uninstall], [delete_crd] = commands("Uninstall")[:1], commands("Uninstall")[1:]
    succeed(plane, uninstall)
    assert set(before) == {item["metadata"]["name"] for item in plane.admin.get(collection(NAMESPACE))["items"]}
    assert children(plane) != []
    plane.admin.call("DELETE", f"{collection(NAMESPACE)}/one")
    wait_for("what belonged to one", lambda: not [name for name in children(plane) if name.startswith("one")])
    succeed(plane, delete_crd, "--timeout=40s")
    wait_for("the rest", lambda: children(plane) == [])
    assert plane.admin.get_or_none(CRD) is None
    assert ours(plane) == []


def serves(plane: ControlPlane, name: str) -> bool:
    return condition(plane, NAMESPACE, name) == ("True", "ScaledToZero")


def present(plane: ControlPlane) -> bool:
    """Whether the API server has the fields of this checkout."""
    wanted = yaml.safe_load(CRD_FILE.read_text())
    return spec_fields(plane.admin.get(CRD)) == spec_fields(wanted)


def spec_fields(crd: Object) -> set[str]:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return set(schema["properties"]["spec"]["properties"])


def lost(old: Object, new: Object) -> Object:
    """What of the old spec is not in the new one. Defaults of new fields may have come to it."""
    found: Object = {}
    for name, value in old.items():
        other = new.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            found |= {f"{name}.{inner}": what for inner, what in lost(value, other).items()}
        elif other != value:
            found[name] = value
    return found


def children(plane: ControlPlane) -> list[str]:
    paths = (
        "/api/v1/{}/services",
        "/api/v1/{}/secrets",
        "/apis/apps/v1/{}/deployments",
        "/apis/apps/v1/{}/controllerrevisions",
        "/apis/policy/v1/{}/poddisruptionbudgets",
        "/apis/networking.k8s.io/v1/{}/networkpolicies",
    )
    found = [item for path in paths for item in plane.admin.get(path.format(f"namespaces/{NAMESPACE}"))["items"]]
    return [item["metadata"]["name"] for item in found if item["metadata"].get("ownerReferences")]


def ours(plane: ControlPlane) -> list[str]:
    """What is left of the release in the whole cluster."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    paths = (f"{rbac}/clusterroles", f"{rbac}/clusterrolebindings", f"{rbac}/namespaces/{NAMESPACE}/roles")
    names = [item["metadata"]["name"] for path in paths for item in plane.admin.get(path)["items"]]
    return [name for name in names if name.startswith(RELEASE)]
