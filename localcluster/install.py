"""Puts Shift on the local cluster: images, operator by Helm, a namespace with the volumes that runtime pods read."""

from __future__ import annotations

import time
from collections.abc import Callable

from localcluster import content, images, storage
from localcluster.errors import ClusterError
from localcluster.images import REPOSITORY
from localcluster.settings import Settings
from localcluster.tools import helm, kubectl

OPERATOR_NAMESPACE = "shift-system"
RELEASE = "shift"
_ROLLOUT_SECONDS = 90

Say = Callable[[str], None]


def build_images(settings: Settings) -> None:
    for name in images.PROJECT_IMAGES:
        images.build_project_image(name, settings)


def install_operator(settings: Settings, say: Say) -> None:
    """Chart and CRD from this checkout; a new operator image replaces the running operator."""
    create_namespace(OPERATOR_NAMESPACE, settings)
    crds = str(REPOSITORY / "charts/shift/crds")
    kubectl("apply", "--server-side", "--force-conflicts", "-f", crds, settings=settings)
    image_key = images.built_key("operator", settings)
    say(
        helm(
            *("upgrade", "--install", RELEASE, str(REPOSITORY / "charts/shift"), "--namespace", OPERATOR_NAMESPACE),
            *("--skip-crds", "--set-string", f"podAnnotations.image={image_key}"),
            settings=settings,
        ).splitlines()[0]
    )
    kubectl(
        *("rollout", "status", f"deployment/{operator_name(settings)}", f"--timeout={_ROLLOUT_SECONDS}s"),
        *("--namespace", OPERATOR_NAMESPACE),
        settings=settings,
    )


def operator_name(settings: Settings) -> str:
    """Name of the operator's Deployment as the chart made it."""
    names = kubectl(
        *("get", "deployments", "--namespace", OPERATOR_NAMESPACE, "-o", "jsonpath={.items[*].metadata.name}"),
        *("-l", f"app.kubernetes.io/instance={RELEASE}"),
        settings=settings,
    ).split()
    if len(names) != 1:
        raise ClusterError("NoOperator", f"expected one operator in {OPERATOR_NAMESPACE}, found {names}")
    return names[0]


def prepare_namespace(namespace: str, settings: Settings) -> None:
    """A namespace at the strictest Pod Security level with the model and the wheels."""
    create_namespace(namespace, settings)
    storage.create_volume(content.MODEL_CLAIM, content.prepare_model(), namespace, settings)
    storage.create_volume(content.WHEELS_CLAIM, content.prepare_wheels(settings), namespace, settings)


def create_namespace(namespace: str, settings: Settings) -> None:
    manifest = f"""
apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
    kubectl("apply", "--server-side", "-f", "-", settings=settings, stdin=manifest)


def wait_gone(kind: str, namespace: str, selector: str, settings: Settings, timeout_seconds: float) -> None:
    """Waits until nothing of this kind and label is left."""
    deadline = time.monotonic() + timeout_seconds
    while names := kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "name", settings=settings).split():
        if time.monotonic() > deadline:
            raise ClusterError("StillThere", f"{', '.join(names)} in {namespace} after {timeout_seconds:.0f} s")
        time.sleep(0.5)
