"""Folders of the host for pods, read-only: model files and third-party wheels that are too big for an image."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

from localcluster.api import Api
from localcluster.errors import ClusterError
from localcluster.settings import Settings, from_environment

BIND_SECONDS = 30.0


def create_volume(name: str, host_path: Path, namespace: str, settings: Settings | None = None) -> str:
    """Makes a claim NAME in the namespace, bound to a volume of its own on `host_path`. Returns the claim's name.

    Pods must mount it with `readOnly: true` and set no fsGroup: the kubelet would re-group the host's files.
    """
    path = host_path.resolve()
    require_world_readable(path)
    api = Api((settings or from_environment()).kubeconfig)
    if api.get_or_none(f"/api/v1/namespaces/{namespace}") is None:
        raise ClusterError("NoNamespace", f"namespace {namespace} does not exist; create it first")
    volume_name = f"{namespace}-{name}"
    volume_url, claim_url = f"/api/v1/persistentvolumes/{volume_name}", _claim_url(namespace, name)
    _refuse_other_path(api, volume_url, path)
    api.apply(volume_url, _volume(volume_name, path, namespace, name))
    api.apply(claim_url, _claim(volume_name, namespace, name))
    _wait_bound(api, volume_url, claim_url)
    return name


def delete_volume(name: str, namespace: str, settings: Settings | None = None) -> None:
    """Removes the claim and its volume; the host's files stay."""
    api = Api((settings or from_environment()).kubeconfig)
    for url in (_claim_url(namespace, name), f"/api/v1/persistentvolumes/{namespace}-{name}"):
        if api.get_or_none(url) is not None:
            api.call("DELETE", url)


def require_world_readable(path: Path) -> None:
    """Pods run as a user that owns nothing here: every folder needs r-x and every file r-- for others."""
    if not path.is_dir():
        raise ClusterError("NotAFolder", f"{path} is not a folder")
    _require(path, path.stat().st_mode)
    for folder, names, files in os.walk(path):
        for entry in (Path(folder) / name for name in (*names, *files)):
            mode = entry.lstat().st_mode
            if not stat.S_ISLNK(mode):
                _require(entry, mode)


def _require(path: Path, mode: int) -> None:
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    if mode & needed != needed:
        raise ClusterError(
            "NotWorldReadable", f"{path} has mode {stat.filemode(mode)}; pods cannot read it: `chmod -R o+rX {path}`"
        )


def _refuse_other_path(api: Api, volume_url: str, path: Path) -> None:
    existing = api.get_or_none(volume_url)
    bound_path = existing["spec"]["hostPath"]["path"] if existing is not None else str(path)
    if bound_path != str(path):
        # A volume's source cannot be changed; saying so beats the API server's wording.
        raise ClusterError("VolumeExists", f"{volume_url} already offers {bound_path}; delete claim and volume first")


def _wait_bound(api: Api, volume_url: str, claim_url: str) -> None:
    deadline = time.monotonic() + BIND_SECONDS
    while (phase := api.get(claim_url)["status"].get("phase")) != "Bound":
        if api.get(volume_url)["status"].get("phase") == "Released":
            # The claim was deleted and made again: forget the old one's uid, so that the new one may bind.
            patch = {"spec": {"claimRef": {"uid": None, "resourceVersion": None}}}
            api.call("PATCH", volume_url, patch, "application/merge-patch+json")
        if time.monotonic() > deadline:
            raise ClusterError("NotBound", f"{claim_url} is {phase} after {BIND_SECONDS:.0f} s; see its events")
        time.sleep(0.2)


def _claim_url(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"


def _volume(volume_name: str, path: Path, namespace: str, claim: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            # Required by the API; a host folder has no quota.
            "capacity": {"storage": "1Gi"},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim},
            "hostPath": {"path": str(path), "type": "Directory"},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
        },
    }


def _claim(volume_name: str, namespace: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "",
            "volumeName": volume_name,
        },
    }
