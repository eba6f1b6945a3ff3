"""The chart installed on a control plane by Helm, and the operator as a process with the rights that this gave it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.chart import CHART, helm
from helpers.control_plane.operator import Operator
from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import ControlPlane

RELEASE = "shift"


def install(plane: ControlPlane, namespace: str, watched: tuple[str, ...]) -> None:
    """Everything but pods of the operator; namespaced mode where namespaces are named."""
    chosen = ("--set", f"watchNamespaces={{{','.join(watched)}}}") if watched else ()
    _succeed(
        plane,
        *("upgrade", "--install", RELEASE, str(CHART), "--namespace", namespace, "--skip-crds"),
        *("--set", "replicas=0", *chosen),
    )


def uninstall(plane: ControlPlane, namespace: str) -> None:
    _succeed(plane, "uninstall", RELEASE, "--namespace", namespace, "--ignore-not-found")


@contextmanager
def released(plane: ControlPlane, namespace: str, watched: tuple[str, ...]) -> Iterator[None]:
    install(plane, namespace, watched)
    try:
        yield
    finally:
        uninstall(plane, namespace)


@contextmanager
def released_operator(
    plane: ControlPlane, namespace: str, watched: tuple[str, ...], log: Path, **environment: str
) -> Iterator[Operator]:
    """With the rights of the chart's service account and no others."""
    user = f"system:serviceaccount:{namespace}:{RELEASE}"
    kubeconfig = plane.kubeconfig(user, "system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    served = {"SHIFT_NAMESPACE": namespace, "SHIFT_WATCH_NAMESPACES": ",".join(watched), "SHIFT_LEASE_NAME": RELEASE}
    with operator_process(kubeconfig, user, namespace, log, **{**served, **environment}) as running:
        yield running


def _succeed(plane: ControlPlane, *arguments: str) -> None:
    done = helm(*arguments, kubeconfig=plane.admin_kubeconfig)
    assert done.returncode == 0, done.stderr
