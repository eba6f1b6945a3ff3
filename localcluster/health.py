"""How each component says that it is well: used by the waits of `up` and by `status`."""

from __future__ import annotations

import socket
import ssl
import struct
import urllib.error
import urllib.request
from collections.abc import Callable

from localcluster.api import Api
from localcluster.containers import Containers
from localcluster.errors import ClusterError
from localcluster.settings import (
    CLUSTER_DOMAIN,
    CONTROLLER_MANAGER_PORT,
    DNS_READY_PORT,
    ETCD_CLIENT_PORT,
    KUBELET_HEALTH_PORT,
    NODE_NAME,
    PROXY_HEALTH_PORT,
    SCHEDULER_PORT,
    Network,
    Settings,
)

# What is still missing, or None.
Check = Callable[[], str | None]
PROBE_SECONDS = 3.0


def checks(settings: Settings, network: Network) -> dict[str, Check]:
    """In the order in which the components start."""
    return {
        "containerd": Containers(settings.containerd_socket).problem,
        "etcd": lambda: http_problem(f"https://127.0.0.1:{ETCD_CLIENT_PORT}/health", etcd_context(settings)),
        "kube-apiserver": lambda: api_problem(settings),
        # These two serve with a certificate they made for themselves; nothing is sent to them.
        "kube-controller-manager": lambda: http_problem(
            f"https://127.0.0.1:{CONTROLLER_MANAGER_PORT}/healthz", _unverified()
        ),
        "kube-scheduler": lambda: http_problem(f"https://127.0.0.1:{SCHEDULER_PORT}/readyz", _unverified()),
        "kubelet": lambda: http_problem(f"http://127.0.0.1:{KUBELET_HEALTH_PORT}/healthz"),
        "kube-proxy": lambda: http_problem(f"http://127.0.0.1:{PROXY_HEALTH_PORT}/healthz"),
        "coredns": lambda: http_problem(f"http://127.0.0.1:{DNS_READY_PORT}/ready") or dns_problem(network),
    }


def api_problem(settings: Settings) -> str | None:
    try:
        return Api(settings.kubeconfig).problem("/readyz")
    except (ClusterError, OSError) as error:
        return str(error)


def node_problem(api: Api) -> str | None:
    try:
        node = api.get_or_none(f"/api/v1/nodes/{NODE_NAME}")
    except (ClusterError, OSError) as error:
        return str(error)
    if node is None:
        return "the kubelet has not registered the node"
    ready = [condition for condition in node["status"].get("conditions", []) if condition["type"] == "Ready"]
    if not ready:
        return "the node has no Ready condition"
    return None if ready[0]["status"] == "True" else str(ready[0].get("message", "not ready"))


def http_problem(url: str, context: ssl.SSLContext | None = None) -> str | None:
    # No proxy from the environment: these are addresses of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=PROBE_SECONDS):
            return None
    except (OSError, urllib.error.URLError) as error:
        return f"{url}: {error}"


def etcd_context(settings: Settings) -> ssl.SSLContext | None:
    certificate = settings.pki / "etcd-client.crt"
    if not certificate.exists():
        return None
    context = ssl.create_default_context(cafile=str(settings.pki / "etcd-ca.crt"))
    context.load_cert_chain(certificate, settings.pki / "etcd-client.key")
    return context


def dns_problem(network: Network) -> str | None:
    """Asks the cluster's DNS for the API server, as a pod would."""
    name = f"kubernetes.default.svc.{CLUSTER_DOMAIN}"
    query = struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + encode_name(name) + struct.pack("!HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.sendto(query, (network.node_ip, 53))
            answer = probe.recv(512)
        except OSError as error:
            return f"{network.node_ip}:53: {error}"
    if not answer.endswith(socket.inet_aton(network.api_service_ip)):
        return f"{network.node_ip}:53 does not answer {name} with {network.api_service_ip}"
    return None


def encode_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
