"""Files and command lines of a control plane on one loopback address: no root, no network set-up, no nodes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from helpers.control_plane.repository import ROOT  # makes localcluster importable

from localcluster import pki

CONTROLLERS = (
    "deployment-controller",
    "replicaset-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "disruption-controller",
    "horizontal-pod-autoscaler-controller",
    "clusterrole-aggregation-controller",
)
CRD = ROOT / "charts/shift/crds/shiftdeployments.yaml"
API_PORT = 6443
_ETCD_PORT, _ETCD_PEER_PORT, _CONTROLLERS_PORT = 2379, 2380, 10257

# Everything but what the API server says to itself.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "users": ["system:apiserver"]}, {"level": "Metadata"}],
}


@dataclass(frozen=True)
class Place:
    """Where one control plane lives. Its address keeps it apart from others, so that ports can be the usual ones."""

    folder: Path
    address: str

    @property
    def url(self) -> str:
        return f"https://{self.address}:{API_PORT}"

    @property
    def etcd_url(self) -> str:
        return f"http://{self.address}:{_ETCD_PORT}"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"


def write_files(place: Place) -> None:
    place.pki.mkdir(mode=0o700)
    pki.authority(place.pki, "ca")
    names = ["DNS:localhost", "DNS:kubernetes.default.svc", f"IP:{place.address}"]
    pki.leaf(place.pki, "apiserver", "ca", "/CN=kube-apiserver", "serverAuth", names)
    pki.service_account_key(place.pki)
    (place.folder / "audit-policy.json").write_text(json.dumps(_AUDIT_POLICY))


def kubeconfig(place: Place, user: str, groups: tuple[str, ...] = ()) -> Path:
    """For any user name, also `system:serviceaccount:NAMESPACE:NAME`; members of system:masters may do everything."""
    name = user.replace(":", "-")
    pki.leaf(place.pki, name, "ca", "".join(f"/O={group}" for group in groups) + f"/CN={user}", "clientAuth", [])
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": place.url, "certificate-authority": str(place.pki / "ca.crt")}}
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate": str(place.pki / f"{name}.crt"),
                    "client-key": str(place.pki / f"{name}.key"),
                },
            }
        ],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": "default"}}],
        "current-context": "test",
    }
    path = place.folder / f"{name}.kubeconfig"
    path.write_text(json.dumps(document, indent=2))  # JSON is YAML
    return path


def etcd(kube: Path, place: Place) -> list[str]:
    peer = f"http://{place.address}:{_ETCD_PEER_PORT}"
    return [
        str(kube), "etcd", "--name=test", f"--data-dir={place.folder}/etcd",
        f"--listen-client-urls={place.etcd_url}", f"--advertise-client-urls={place.etcd_url}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=test={peer}",
        "--unsafe-no-fsync", "--log-level=warn",
    ]  # fmt: skip


def apiserver(kube: Path, place: Place) -> list[str]:
    return [
        str(kube), "kube-apiserver", f"--etcd-servers={place.etcd_url}",
        f"--bind-address={place.address}", f"--advertise-address={place.address}", f"--secure-port={API_PORT}",
        # The `kubernetes` Service would need an address that is not loopback.
        "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.112.0.0/16",
        f"--tls-cert-file={place.pki}/apiserver.crt", f"--tls-private-key-file={place.pki}/apiserver.key",
        f"--client-ca-file={place.pki}/ca.crt", "--anonymous-auth=false", "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc", "--profiling=false",
        f"--service-account-key-file={place.pki}/service-account.key",
        f"--service-account-signing-key-file={place.pki}/service-account.key",
        f"--audit-policy-file={place.folder}/audit-policy.json", f"--audit-log-path={place.audit_log}",
        # Never a new file: positions in this one are kept.
        "--audit-log-mode=blocking", "--audit-log-maxsize=100000",
    ]  # fmt: skip


def controller_manager(kube: Path, place: Place, user: Path, controllers: tuple[str, ...]) -> list[str]:
    return [
        str(kube), "kube-controller-manager", f"--kubeconfig={user}", "--leader-elect=false", "--profiling=false",
        f"--bind-address={place.address}", f"--secure-port={_CONTROLLERS_PORT}",
        f"--cert-dir={place.folder}/controller-manager", f"--controllers={','.join(controllers)}",
        "--kube-api-qps=500", "--kube-api-burst=1000", "--concurrent-deployment-syncs=10",
        "--concurrent-replicaset-syncs=10", "--concurrent-namespace-syncs=20",
        "--horizontal-pod-autoscaler-sync-period=1s", "--concurrent-horizontal-pod-autoscaler-syncs=1",
    ]  # fmt: skip
