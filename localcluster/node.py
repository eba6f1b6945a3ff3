"""Configuration files and command lines of every component: what runs, with which rights, on which address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from localcluster import network as net
from localcluster.pki import kubeconfig_of
from localcluster.settings import (
    API_PORT,
    BRIDGE,
    CLUSTER_DOMAIN,
    CONTROLLER_MANAGER_PORT,
    DNS_HEALTH_PORT,
    DNS_READY_PORT,
    ETCD_CLIENT_PORT,
    ETCD_PEER_PORT,
    KUBELET_HEALTH_PORT,
    KUBELET_PORT,
    NODE_NAME,
    PROXY_HEALTH_PORT,
    PROXY_METRICS_PORT,
    SCHEDULER_PORT,
    Network,
    Settings,
)

CONTAINERD_CONFIG = """\
version = 2
root = "{root}"
state = "{run}/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  # Some hosts do not let even root lower its OOM score: without this every pod would fail there.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{config}/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{run}/runc"
      SystemdCgroup = false
"""

COREFILE = """\
.:53 {{
    bind {address}
    errors
    health 127.0.0.1:{health}
    ready 127.0.0.1:{ready}
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        # Clients balance over a headless Service themselves: a pod that left must leave their list soon.
        ttl 2
    }}
    {forward}
}}
"""


def write_configs(settings: Settings, network: Network, pause_image: str) -> None:
    settings.config.mkdir(parents=True, exist_ok=True)
    (settings.config / "cni").mkdir(exist_ok=True)
    files = {
        "containerd.toml": CONTAINERD_CONFIG.format(
            root=settings.containerd_root, run=settings.run, socket=settings.containerd_socket,
            config=settings.config, pause=pause_image),
        "cni/10-shift.conflist": json.dumps(_cni(settings, network), indent=2),
        "kubelet.json": json.dumps(_kubelet(settings, network), indent=2),
        "kube-proxy.json": json.dumps(_kube_proxy(settings, network), indent=2),
        "Corefile": _corefile(settings, network),
    }  # fmt: skip
    for name, text in files.items():
        (settings.config / name).write_text(text)


def _corefile(settings: Settings, network: Network) -> str:
    servers = net.nameservers(Path("/etc/resolv.conf"))
    return COREFILE.format(
        address=network.node_ip, health=DNS_HEALTH_PORT, ready=DNS_READY_PORT, domain=CLUSTER_DOMAIN,
        kubeconfig=kubeconfig_of(settings, "coredns"),
        forward="forward . /etc/resolv.conf" if servers else "# this host has no name server to forward to",
    )  # fmt: skip


def _cni(settings: Settings, network: Network) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        # A pod that calls a Service may be answered by itself: the bridge must send back where it came from.
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(settings.run / "ipam"),
            "ranges": [[{"subnet": network.pod_cidr, "gateway": network.node_ip}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "0.4.0", "name": "shift-localcluster", "plugins": [bridge]}


def _kubelet(settings: Settings, network: Network) -> dict[str, Any]:
    pki = settings.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node_ip,
        "port": KUBELET_PORT,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": KUBELET_HEALTH_PORT,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet-server.key"),
        "containerRuntimeEndpoint": f"unix://{settings.containerd_socket}",
        "clusterDNS": [network.node_ip],
        "clusterDomain": CLUSTER_DOMAIN,
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "podLogsDir": str(settings.logs / "pods"),
        "volumePluginDir": str(settings.state / "volume-plugins"),
        # The disk is shared with everything else on the host, often nearly full; percentages would evict for that.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
        # Images come from this machine and from no registry: one that is collected could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "5s",
        # A changed Secret is in its pods within about this time. There are few pods.
        "syncFrequency": "10s",
    }


def _kube_proxy(settings: Settings, network: Network) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig_of(settings, "kube-proxy"))},
        "mode": "iptables",
        "hostnameOverride": NODE_NAME,
        "bindAddress": network.node_ip,
        "clusterCIDR": network.pod_cidr,
        "metricsBindAddress": f"127.0.0.1:{PROXY_METRICS_PORT}",
        "healthzBindAddress": f"127.0.0.1:{PROXY_HEALTH_PORT}",
        # A NodePort answers on the bridge, never on the host's outer addresses.
        "nodePortAddresses": [f"{network.node_ip}/32"],
        "iptables": {"localhostNodePorts": False},
        # Zero leaves the host's connection tracking as it is.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def containerd_command(settings: Settings) -> list[str]:
    return ["containerd", "--config", str(settings.config / "containerd.toml")]


def etcd_command(kube: Path, settings: Settings) -> list[str]:
    client, peer = f"https://127.0.0.1:{ETCD_CLIENT_PORT}", f"https://127.0.0.1:{ETCD_PEER_PORT}"
    pki = settings.pki
    return [
        str(kube), "etcd", "--name=shift", f"--data-dir={settings.state}/etcd",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=shift={peer}",
        f"--trusted-ca-file={pki}/etcd-ca.crt", f"--cert-file={pki}/etcd-server.crt",
        f"--key-file={pki}/etcd-server.key", "--client-cert-auth",
        f"--peer-trusted-ca-file={pki}/etcd-ca.crt", f"--peer-cert-file={pki}/etcd-server.crt",
        f"--peer-key-file={pki}/etcd-server.key", "--peer-client-cert-auth",
        # A cluster that `down` deletes anyway need not survive a power cut, and start is much faster.
        "--unsafe-no-fsync", "--log-level=warn",
    ]  # fmt: skip


def apiserver_command(kube: Path, settings: Settings, network: Network) -> list[str]:
    pki = settings.pki
    return [
        str(kube), "kube-apiserver",
        f"--etcd-servers=https://127.0.0.1:{ETCD_CLIENT_PORT}", f"--etcd-cafile={pki}/etcd-ca.crt",
        f"--etcd-certfile={pki}/etcd-client.crt", f"--etcd-keyfile={pki}/etcd-client.key",
        f"--bind-address={network.node_ip}", f"--advertise-address={network.node_ip}", f"--secure-port={API_PORT}",
        f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt", "--anonymous-auth=false", "--profiling=false",
        "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
        f"--service-cluster-ip-range={network.service_cidr}",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={pki}/service-account.key",
        f"--service-account-signing-key-file={pki}/service-account.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/apiserver-to-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-to-kubelet.key",
        # The node's name is in no DNS: `kubectl logs` and `exec` must dial its address.
        "--kubelet-preferred-address-types=InternalIP",
    ]  # fmt: skip


def controller_manager_command(kube: Path, settings: Settings) -> list[str]:
    pki, kubeconfig = settings.pki, kubeconfig_of(settings, "kube-controller-manager")
    return [
        str(kube), "kube-controller-manager", f"--kubeconfig={kubeconfig}", "--leader-elect=false",
        "--bind-address=127.0.0.1", f"--secure-port={CONTROLLER_MANAGER_PORT}", "--profiling=false",
        f"--cert-dir={settings.run}/kube-controller-manager",
        "--use-service-account-credentials", f"--service-account-private-key-file={pki}/service-account.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key",
    ]  # fmt: skip


def scheduler_command(kube: Path, settings: Settings) -> list[str]:
    return [
        str(kube), "kube-scheduler", f"--kubeconfig={kubeconfig_of(settings, 'kube-scheduler')}",
        "--leader-elect=false", "--bind-address=127.0.0.1", f"--secure-port={SCHEDULER_PORT}", "--profiling=false",
        f"--cert-dir={settings.run}/kube-scheduler",
    ]  # fmt: skip


def kubelet_command(kube: Path, settings: Settings, network: Network) -> list[str]:
    return [
        str(kube), "kubelet", f"--config={settings.config}/kubelet.json",
        f"--kubeconfig={kubeconfig_of(settings, 'kubelet')}", f"--hostname-override={NODE_NAME}",
        f"--node-ip={network.node_ip}", f"--root-dir={settings.state}/kubelet",
    ]  # fmt: skip


def kube_proxy_command(kube: Path, settings: Settings) -> list[str]:
    return [str(kube), "kube-proxy", f"--config={settings.config}/kube-proxy.json"]


def coredns_command(kube: Path, settings: Settings) -> list[str]:
    return [str(kube), "coredns", "-conf", str(settings.config / "Corefile")]
