"""Names, versions, ports and paths: the one file that reads the environment."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import ClusterError

KUBERNETES_VERSION = "v1.36.3"
NODE_NAME = "shift-local"
CLUSTER_DOMAIN = "cluster.local"
BRIDGE = "shiftbr0"
FIELD_MANAGER = "shift-localcluster"

# Packages whose programs the cluster runs, and one program of each that proves it is there.
DEBIAN_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "iptables",
    "iproute2": "ip",
    "openssl": "openssl",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
}

# Tried in order; the first pair that overlaps no address, route or name server of the host is taken.
NETWORK_CANDIDATES = (
    ("10.244.0.0/24", "10.96.0.0/16"),
    ("172.29.244.0/24", "172.28.0.0/16"),
    ("10.153.244.0/24", "10.152.0.0/16"),
    ("198.19.244.0/24", "198.18.0.0/16"),
)

API_PORT = 6443
KUBELET_PORT = 10250
ETCD_CLIENT_PORT = 2379
ETCD_PEER_PORT = 2380
# Loopback only: health and metrics of each component.
CONTROLLER_MANAGER_PORT = 10257
SCHEDULER_PORT = 10259
KUBELET_HEALTH_PORT = 10248
PROXY_METRICS_PORT = 10249
PROXY_HEALTH_PORT = 10256
DNS_HEALTH_PORT = 10258
DNS_READY_PORT = 10260


@dataclass(frozen=True)
class Settings:
    """Where everything lives. `state` goes with `down`; `cache` stays."""

    state: Path
    run: Path
    cache: Path
    debian_mirror: str
    ca_bundle: Path
    pip_config: Path

    def __post_init__(self) -> None:
        for path in (self.state, self.run, self.cache):
            if not path.is_absolute() or len(path.parts) < 3:
                # `down` deletes these folders: a relative or top-level path would delete something else.
                raise ClusterError(
                    "BadFolder", f"{path} must be an absolute path at least two folders deep; change SHIFT_STATE"
                )

    @property
    def marker(self) -> Path:
        """Says that `state` and what carries our names on this machine is ours; holds the boot it belongs to."""
        return self.state / "boot-id"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def config(self) -> Path:
        return self.state / "config"

    @property
    def records(self) -> Path:
        return self.state / "processes"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def containerd_root(self) -> Path:
        # In the cache, so that images imported once are still there after `down` and `up`.
        return self.cache / "containerd"

    @property
    def lock(self) -> Path:
        return self.cache / "lock"


@dataclass(frozen=True)
class Network:
    """The address plan of one cluster, chosen at the first `up` and kept until `down`."""

    pod_cidr: str
    service_cidr: str

    @property
    def node_ip(self) -> str:
        """The bridge's address: the node, the API server and the DNS server all live on it."""
        return str(ipaddress.ip_network(self.pod_cidr)[1])

    @property
    def api_service_ip(self) -> str:
        return str(ipaddress.ip_network(self.service_cidr)[1])

    @property
    def api_url(self) -> str:
        return f"https://{self.node_ip}:{API_PORT}"


def from_environment() -> Settings:
    home_cache = Path(os.environ.get("SHIFT_CACHE") or Path.home() / ".cache" / "shift")
    return Settings(
        state=Path(os.environ.get("SHIFT_STATE") or "/var/lib/shift-localcluster"),
        run=Path("/run/shift-localcluster"),
        cache=home_cache.expanduser().absolute() / "localcluster",
        debian_mirror=os.environ.get("SHIFT_DEBIAN_MIRROR") or "http://deb.debian.org/debian",
        ca_bundle=Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"),
        pip_config=Path("/etc/pip.conf"),
    )
