"""What the machine must offer before anything starts; installs the Debian packages that are missing."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from pathlib import Path

from localcluster import network
from localcluster.errors import ClusterError
from localcluster.settings import (
    CONTROLLER_MANAGER_PORT,
    DEBIAN_PACKAGES,
    DNS_HEALTH_PORT,
    DNS_READY_PORT,
    ETCD_CLIENT_PORT,
    ETCD_PEER_PORT,
    KUBELET_HEALTH_PORT,
    PROXY_HEALTH_PORT,
    PROXY_METRICS_PORT,
    SCHEDULER_PORT,
)

INSTALL_SECONDS = 600
LOOPBACK_PORTS = (
    ETCD_CLIENT_PORT, ETCD_PEER_PORT, KUBELET_HEALTH_PORT, PROXY_METRICS_PORT, PROXY_HEALTH_PORT,
    CONTROLLER_MANAGER_PORT, SCHEDULER_PORT, DNS_HEALTH_PORT, DNS_READY_PORT,
)  # fmt: skip


def check_and_install() -> None:
    require_root()
    _install(missing_packages())


def require_root() -> None:
    if platform.system() != "Linux":
        raise ClusterError("NotLinux", f"the local cluster needs Linux, this is {platform.system()}")
    if os.geteuid() != 0:
        raise ClusterError("NotRoot", f"uid {os.geteuid()} may not make containers and bridges; run it with sudo")


def check_unused() -> None:
    """Before the first start: nobody else's Kubernetes here, and our ports are free."""
    chains = network.foreign_chains()
    if chains:
        raise ClusterError(
            "OtherKubernetes",
            f"iptables has chains of another cluster ({', '.join(chains[:4])}, …); stop it and remove its rules first",
        )
    cgroups = [path for path in Path("/sys/fs/cgroup").glob("**/kubepods") if path.is_dir()]
    if cgroups:
        raise ClusterError("OtherKubernetes", f"{cgroups[0]} belongs to another kubelet; stop that one first")
    for port in LOOPBACK_PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise ClusterError(
                    "PortTaken", f"127.0.0.1:{port} cannot be bound ({error}); `ss -ltnp` names its owner: stop that"
                ) from None


def missing_packages() -> list[str]:
    # Root's PATH may lack sbin, where iptables and ip live.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
    return sorted(package for package, program in DEBIAN_PACKAGES.items() if shutil.which(program, path=path) is None)


def _install(packages: list[str]) -> None:
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError("PackagesMissing", f"no apt-get here; install the equivalents of: {' '.join(packages)}")
    print(f"  installing Debian packages: {' '.join(packages)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    commands = (["apt-get", "update", "-q"], ["apt-get", "install", "-qy", "--no-install-recommends", *packages])
    for command in commands:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
        if done.returncode != 0:
            raise ClusterError("InstallFailed", f"`{' '.join(command)}` failed: {done.stderr.strip()[-600:]}")
    still = missing_packages()
    if still:
        raise ClusterError("PackagesMissing", f"installed, but their programs are not found: {' '.join(still)}")
