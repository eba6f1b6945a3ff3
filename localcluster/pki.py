"""Certificates, made with openssl: one authority for the cluster, another one for etcd."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from localcluster.settings import CLUSTER_DOMAIN, NODE_NAME, Network, Settings

DAYS = "365"

# name -> (subject, what it may be used for). Subjects are the names that RBAC and the Node authorizer know.
CLIENTS = {
    "admin": "/O=system:masters/CN=shift-admin",
    "kube-controller-manager": "/CN=system:kube-controller-manager",
    "kube-scheduler": "/CN=system:kube-scheduler",
    "kube-proxy": "/CN=system:kube-proxy",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE_NAME}",
    "coredns": "/CN=shift:coredns",
    "apiserver-to-kubelet": "/CN=shift:apiserver-to-kubelet",
}


def ensure(settings: Settings, network: Network) -> None:
    """Makes every key, certificate and kubeconfig that is missing. Keys are readable by root only."""
    settings.pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    previous = os.umask(0o077)
    try:
        authority(settings.pki, "ca")
        # etcd trusts its own authority only: else every client certificate of the cluster could read all secrets.
        authority(settings.pki, "etcd-ca")
        leaf(settings.pki, "etcd-server", "etcd-ca", "/CN=etcd", "serverAuth,clientAuth", ["IP:127.0.0.1"])
        leaf(settings.pki, "etcd-client", "etcd-ca", "/CN=kube-apiserver", "clientAuth", [])
        leaf(settings.pki, "apiserver", "ca", "/CN=kube-apiserver", "serverAuth", _apiserver_names(network))
        leaf(settings.pki, "kubelet-server", "ca", f"/CN={NODE_NAME}", "serverAuth",
              [f"DNS:{NODE_NAME}", f"IP:{network.node_ip}"])  # fmt: skip
        for name, subject in CLIENTS.items():
            leaf(settings.pki, name, "ca", subject, "clientAuth", [])
            if name != "apiserver-to-kubelet":
                _kubeconfig(settings, network, name)
        service_account_key(settings.pki)
        _link_admin(settings)
    finally:
        os.umask(previous)


def kubeconfig_of(settings: Settings, component: str) -> Path:
    return settings.pki / f"{component}.kubeconfig"


def _apiserver_names(network: Network) -> list[str]:
    service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{CLUSTER_DOMAIN}"]
    addresses = [network.node_ip, network.api_service_ip]
    return [f"DNS:{name}" for name in (*service, "localhost")] + [f"IP:{address}" for address in addresses]


def authority(folder: Path, name: str) -> None:
    """Makes `name`.key and `name`.crt in `folder` unless they are there."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    if certificate.exists():
        return
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", DAYS, "-subj", f"/CN=shift-localcluster-{name}", "-keyout", str(key), "-out", str(certificate),
             "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")  # fmt: skip


def leaf(folder: Path, name: str, authority: str, subject: str, usage: str, names: list[str]) -> None:
    """A certificate signed by `authority`; nothing happens if there is one. `names` are its subjectAltName entries."""
    key, request, certificate = (folder / f"{name}.{suffix}" for suffix in ("key", "csr", "crt"))
    if certificate.exists():
        return
    extensions = folder / f"{name}.ext"
    lines = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", f"extendedKeyUsage={usage}"]
    extensions.write_text("\n".join(lines + ([f"subjectAltName={','.join(names)}"] if names else [])) + "\n")
    _openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-subj", subject, "-keyout", str(key), "-out", str(request))  # fmt: skip
    _openssl("x509", "-req", "-in", str(request), "-days", DAYS, "-CA", str(folder / f"{authority}.crt"),
             "-CAkey", str(folder / f"{authority}.key"), "-CAcreateserial",
             "-extfile", str(extensions), "-out", str(certificate))  # fmt: skip
    request.unlink()
    extensions.unlink()


def service_account_key(folder: Path) -> None:
    if not (folder / "service-account.key").exists():
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(folder / "service-account.key"))


def _kubeconfig(settings: Settings, network: Network, name: str) -> None:
    pki = settings.pki
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "shift-local", "cluster": {
            "server": network.api_url, "certificate-authority": str(pki / "ca.crt")}}],
        "users": [{"name": name, "user": {
            "client-certificate": str(pki / f"{name}.crt"), "client-key": str(pki / f"{name}.key")}}],
        "contexts": [{"name": "shift-local", "context": {"cluster": "shift-local", "user": name}}],
        "current-context": "shift-local",
    }  # fmt: skip
    kubeconfig_of(settings, name).write_text(json.dumps(document, indent=2))  # JSON is YAML


def _link_admin(settings: Settings) -> None:
    settings.kubeconfig.write_bytes(kubeconfig_of(settings, "admin").read_bytes())


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
