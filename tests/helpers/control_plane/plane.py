"""etcd, kube-apiserver and a few controllers as processes of one test session.

The programs are those of the local cluster (its one binary), without its network, its nodes and its need for root.
Each plane takes a loopback network 127.N.0.0/16 of its own: planes run beside each other, and pods can have addresses
at which a real server listens.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from helpers.control_plane import components
from helpers.control_plane.audit import AuditLog
from helpers.control_plane.components import Place
from helpers.control_plane.repository import ROOT  # makes localcluster importable

from localcluster import binary, settings
from localcluster.api import Api

START_SECONDS = 60.0
STOP_SECONDS = 10.0
_LOCK_PORT = 40_001

Object = dict[str, Any]


def find_binary() -> Path | None:
    """The programs of the local cluster, if they were built from these sources."""
    path = settings.from_environment().cache / binary.source_hash() / "shift-kube"
    return path if path.exists() else None


HOW_TO_BUILD = "the Kubernetes programs are not built; `make up && make down` builds them once, in about 6 minutes"


class ControlPlane:
    """Running. `admin` may do everything."""

    def __init__(self, kube: Path, place: Place) -> None:
        self._kube, self.place = kube, place
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        components.write_files(place)
        self.admin_kubeconfig = components.kubeconfig(place, "admin", ("system:masters",))
        self.admin = Api(self.admin_kubeconfig)
        self.audit = AuditLog(place.audit_log)

    @property
    def network(self) -> str:
        """The first two numbers of addresses that belong to this plane."""
        return ".".join(self.place.address.split(".")[:2])

    def kubeconfig(self, user: str, *groups: str) -> Path:
        return components.kubeconfig(self.place, user, groups)

    def start(self, controllers: tuple[str, ...]) -> None:
        self._start("etcd", components.etcd(self._kube, self.place))
        self.start_api_server()
        # Before the garbage collector looks for kinds: it looks again only after 30 s.
        self.apply_crd()
        user = components.kubeconfig(self.place, "kube-controller-manager", ("system:masters",))
        command = components.controller_manager(self._kube, self.place, user, controllers)
        self._start("kube-controller-manager", command)
        self.wait_until(
            "the service account of the default namespace",
            lambda: self.admin.problem("/api/v1/namespaces/default/serviceaccounts/default") is None,
        )

    def start_api_server(self) -> None:
        """Also after `stop_api_server`: what it knew is in etcd."""
        self._start("kube-apiserver", components.apiserver(self._kube, self.place))
        self.wait_until("/readyz of kube-apiserver", lambda: self.admin.problem("/readyz") is None)

    def stop_api_server(self) -> None:
        self._stop("kube-apiserver", signal.SIGKILL)

    def pause_api_server(self) -> None:
        """Connections stay open and nobody answers on them."""
        self._processes["kube-apiserver"].send_signal(signal.SIGSTOP)

    def resume_api_server(self) -> None:
        self._processes["kube-apiserver"].send_signal(signal.SIGCONT)
        self.wait_until("/readyz of kube-apiserver", lambda: self.admin.problem("/readyz") is None)

    def apply_crd(self, manifest: Object | None = None) -> None:
        crd = manifest or yaml.safe_load(components.CRD.read_text())
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        self.admin.apply(path, crd)
        self.wait_until("the CRD", lambda: _established(self.admin.get(path)))

    def create_namespace(self, name: str) -> None:
        self.admin.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        # Pods are refused until it exists.
        path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self.wait_until(f"the service account of {name}", lambda: self.admin.problem(path) is None, 15.0)

    def create_claim(self, namespace: str, name: str = "gemma-270m") -> None:
        """Of the example's model; nothing binds it."""
        room = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
        body = {"metadata": {"name": name}, "spec": room}
        self.admin.call("POST", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", body)

    def delete_namespace(self, name: str) -> None:
        """Begun, not waited for."""
        self.admin.call("DELETE", f"/api/v1/namespaces/{name}")

    def wait_until(self, what: str, holds: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            ended = next((name for name, process in self._processes.items() if process.poll() is not None), None)
            if ended is not None:
                raise RuntimeError(f"{ended} ended; its log says:\n{self.log(ended)[-3000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {seconds:g} s; logs are in {self.place.folder}")
            time.sleep(0.05)

    def log(self, component: str) -> str:
        return (self.place.folder / f"{component}.log").read_text(errors="replace")

    def stop(self) -> None:
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            # Nothing of it is needed again, and the API server takes many seconds to leave politely.
            self._stop(name, signal.SIGKILL)

    def _start(self, name: str, command: list[str]) -> None:
        # Ends with whoever started it, also when that one was killed.
        with (self.place.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command], cwd=self.place.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                # A proxy of the machine must not stand between loopback addresses.
                env={**os.environ, "NO_PROXY": "*", "no_proxy": "*"},
            )  # fmt: skip

    def _stop(self, name: str, how: signal.Signals) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.send_signal(how)
            process.wait(STOP_SECONDS)


@contextmanager
def control_plane(
    kube: Path, folder: Path, controllers: tuple[str, ...] = components.CONTROLLERS
) -> Iterator[ControlPlane]:
    """Ready, with the CRD applied; `folder` gets its logs, keys and kubeconfigs."""
    folder.mkdir(parents=True, exist_ok=True)
    with _own_network() as address:
        plane = ControlPlane(kube, Place(folder, address))
        try:
            plane.start(controllers)
            yield plane
        finally:
            plane.stop()


@contextmanager
def _own_network() -> Iterator[str]:
    """The address of a loopback network that nobody else uses, as long as all of them ask here."""
    for number in random.sample(range(16, 255), 200):
        address = f"127.{number}.0.1"
        with socket.socket() as held:
            try:
                held.bind((address, _LOCK_PORT))
                _require_free(address)
            except OSError:
                continue
            yield address
            return
    raise RuntimeError("no free loopback network 127.N.0.0/16")


def _require_free(address: str) -> None:
    for port in (components.API_PORT, 2379, 2380, 10257):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))


def _established(crd: Object) -> bool:
    conditions = crd.get("status", {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def example(name: str, **spec: Any) -> Object:
    """The example resource under another name, with some fields of its spec replaced, and no autoscaler."""
    made: Object = yaml.safe_load((ROOT / "examples" / "gemma-270m.yaml").read_text())
    made["metadata"] = {"name": name}
    made["spec"] = {**made["spec"], "autoscaling": {"mode": "Disabled"}, **spec}
    loaded: Object = json.loads(json.dumps(made))
    return loaded
