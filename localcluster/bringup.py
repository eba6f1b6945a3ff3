"""`up`: brings the cluster from whatever state it is in to healthy. Running it twice changes nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localcluster import addons, binary, cleanup, health, machine, network, node, pause_image, pki
from localcluster.api import Api
from localcluster.binary import Binaries
from localcluster.containers import Containers
from localcluster.errors import ClusterError
from localcluster.processes import ProcessTable, boot_id
from localcluster.settings import Network, Settings

COMPONENT_SECONDS = 60.0
NODE_SECONDS = 90.0
# Folders whose place is compiled into containerd, libcni or the kubelet; `down` removes those that `up` created.
FIXED_FOLDERS = ("/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers", "/etc/cni")


def up(settings: Settings) -> None:
    started = time.monotonic()
    with phase("prerequisites"):
        machine.check_and_install()
        recover_from_reboot(settings)
    with phase("binary"):
        binaries = binary.ensure(settings)
    with phase("network and keys"):
        plan = prepare(settings, binaries)
    table = ProcessTable(settings.records, settings.logs)
    with phase("containerd, etcd, API server"):
        start_base(settings, plan, binaries, table)
    with phase("controllers, kubelet, DNS"):
        start_rest(settings, plan, binaries, table)
    print(f"up in {time.monotonic() - started:.1f} s\n\nexport KUBECONFIG={settings.kubeconfig}", flush=True)


@contextmanager
def phase(name: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"{name} …", flush=True)
    yield
    print(f"  {name}: {time.monotonic() - started:.1f} s", flush=True)


def recover_from_reboot(settings: Settings) -> None:
    """Records of an earlier boot describe processes and sysctls that are gone; start from nothing instead."""
    if settings.marker.exists() and settings.marker.read_text() != boot_id():
        print("  the machine was restarted since the last `up`: clearing what it left", flush=True)
        (settings.state / "sysctls.json").unlink(missing_ok=True)
        cleanup.down(settings)


def prepare(settings: Settings, binaries: Binaries) -> Network:
    if not settings.marker.exists():
        claim(settings)
    plan = network.load_or_choose(settings.state / "network.json")
    network.setup(settings, plan)
    pki.ensure(settings, plan)
    node.write_configs(settings, plan, pause_image.reference(binaries.pause))
    return plan


def claim(settings: Settings) -> None:
    """Takes the machine for this cluster, after a look that nobody else has it. From then on `down` may clean up."""
    machine.check_unused()
    if settings.state.exists() and any(settings.state.iterdir()):
        raise ClusterError("StateTaken", f"{settings.state} holds other files; empty it or set SHIFT_STATE elsewhere")
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o755)
    settings.marker.write_text(boot_id())
    created = [folder for folder in FIXED_FOLDERS if not Path(folder).exists()]
    (settings.state / "created-folders.json").write_text(json.dumps(created))


def start_base(settings: Settings, plan: Network, binaries: Binaries, table: ProcessTable) -> None:
    checks = health.checks(settings, plan)
    for folder in (settings.run, settings.containerd_root):
        folder.mkdir(parents=True, exist_ok=True, mode=0o711)
    _ensure(table, "containerd", node.containerd_command(settings))
    _ensure(table, "etcd", node.etcd_command(binaries.kube, settings))
    table.wait("etcd", checks["etcd"], COMPONENT_SECONDS)
    _ensure(table, "kube-apiserver", node.apiserver_command(binaries.kube, settings, plan))
    table.wait("containerd", checks["containerd"], COMPONENT_SECONDS)
    pause_image.ensure(Containers(settings.containerd_socket), binaries.pause)
    table.wait("kube-apiserver", checks["kube-apiserver"], COMPONENT_SECONDS)
    addons.apply(Api(settings.kubeconfig))


def start_rest(settings: Settings, plan: Network, binaries: Binaries, table: ProcessTable) -> None:
    checks, kube = health.checks(settings, plan), binaries.kube
    commands = {
        "kubelet": node.kubelet_command(kube, settings, plan),
        "kube-controller-manager": node.controller_manager_command(kube, settings),
        "kube-scheduler": node.scheduler_command(kube, settings),
        "kube-proxy": node.kube_proxy_command(kube, settings),
        "coredns": node.coredns_command(kube, settings),
    }
    for name, command in commands.items():
        _ensure(table, name, command)
    api = Api(settings.kubeconfig)
    for name in commands:
        table.wait(name, checks[name], COMPONENT_SECONDS)
    table.wait("kubelet", lambda: health.node_problem(api), NODE_SECONDS)
    # Pods of the default namespace are refused until its service account exists.
    table.wait("kube-controller-manager", lambda: api.problem(
        "/api/v1/namespaces/default/serviceaccounts/default"), COMPONENT_SECONDS)  # fmt: skip


def _ensure(table: ProcessTable, name: str, command: list[str]) -> None:
    path = f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"
    table.ensure(name, command, {"PATH": path})


def require_up(settings: Settings) -> None:
    """For commands that need a cluster: one sentence instead of a connection error."""
    problem = health.api_problem(settings)
    if problem is not None:
        raise ClusterError("NoCluster", f"the API server does not answer ({problem}); run `cluster.py up` first")
