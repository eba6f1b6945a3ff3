"""A small client of the Kubernetes API: JSON over HTTPS with a client certificate, standard library only."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.parse
from pathlib import Path
from typing import Any

from localcluster.errors import ClusterError
from localcluster.settings import FIELD_MANAGER

TIMEOUT_SECONDS = 10.0


class ApiError(ClusterError):
    """The API server answered, but not with success."""

    def __init__(self, status: int, method: str, path: str, message: str) -> None:
        super().__init__("ApiRefused", f"{method} {path} answered {status}: {message}")
        self.status = status


class Api:
    """Reads the kubeconfig once; every call opens one connection with a timeout."""

    def __init__(self, kubeconfig: Path) -> None:
        try:
            document = json.loads(kubeconfig.read_text())
        except FileNotFoundError:
            raise ClusterError("NoCluster", f"{kubeconfig} does not exist; run `cluster.py up` first") from None
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        self._address = urllib.parse.urlsplit(cluster["server"])
        self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._tls.load_cert_chain(user["client-certificate"], user["client-key"])

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> str:
        host, port = self._address.hostname, self._address.port
        assert host is not None, f"kubeconfig names a server without a host: {self._address.geturl()}"
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=self._tls)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": content_type, "Accept": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            connection.close()
        if response.status >= 300:
            raise ApiError(response.status, method, path, _message(text))
        return text

    def get(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.call("GET", path))
        return answer

    def get_or_none(self, path: str) -> dict[str, Any] | None:
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def apply(self, path: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Server-side apply of one object at its full path."""
        query = urllib.parse.urlencode({"fieldManager": FIELD_MANAGER, "force": "true"})
        answer: dict[str, Any] = json.loads(
            self.call("PATCH", f"{path}?{query}", manifest, "application/apply-patch+yaml")
        )
        return answer

    def problem(self, path: str) -> str | None:
        """None when `path` answers with success, else what is wrong: the shape that waits and `status` use."""
        try:
            self.call("GET", path)
        except (OSError, http.client.HTTPException, ClusterError) as error:
            return str(error)
        return None


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]
