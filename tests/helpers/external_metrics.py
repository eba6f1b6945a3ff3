"""An API server's extension that serves external metrics: what an adapter of a metrics store does, with one number."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from helpers.control_plane.plane import ControlPlane

GROUP_VERSION = "external.metrics.k8s.io/v1beta1"
METRIC = "queued-requests"
_SERVICE = "external-metrics"
_API_SERVICE = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io"

_DISCOVERY = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": GROUP_VERSION,
    "resources": [
        {"name": METRIC, "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
    ],
}


@dataclass
class Metric:
    """`value` may be changed at any time; `asked` counts the questions for it."""

    value: int = 0
    asked: int = 0

    def as_list(self) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        item = {"metricName": METRIC, "metricLabels": {}, "timestamp": now, "value": str(self.value)}
        return {"kind": "ExternalMetricValueList", "apiVersion": GROUP_VERSION, "metadata": {}, "items": [item]}


@contextmanager
def external_metrics(plane: ControlPlane, namespace: str) -> Iterator[Metric]:
    """Registered with the API server, which passes the questions on."""
    metric = Metric()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(metric))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Nobody looks at the name in it: the registration skips that.
    tls.load_cert_chain(plane.place.pki / "apiserver.crt", plane.place.pki / "apiserver.key")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, name="external metrics", daemon=True)
    thread.start()
    try:
        _register(plane, namespace, server.server_address[1])
        yield metric
    finally:
        plane.admin.call("DELETE", _API_SERVICE)
        server.shutdown()
        thread.join(10.0)
        server.server_close()


def _register(plane: ControlPlane, namespace: str, port: int) -> None:
    # There are no Service addresses here: a name that leads to this process.
    service = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    plane.admin.call(
        "POST", f"/api/v1/namespaces/{namespace}/services", {"metadata": {"name": _SERVICE}, "spec": service}
    )
    group, _, version = GROUP_VERSION.partition("/")
    spec = {
        "group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100,
        "insecureSkipTLSVerify": True, "service": {"namespace": namespace, "name": _SERVICE, "port": port},
    }  # fmt: skip
    body = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": spec,
    }
    plane.admin.call("POST", "/apis/apiregistration.k8s.io/v1/apiservices", body)
    path = f"/apis/{GROUP_VERSION}/namespaces/{namespace}/{METRIC}"
    plane.wait_until("the external metric", lambda: plane.admin.problem(path) is None)


def _handler(metric: Metric) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].rstrip("/")
            if path.endswith(f"/{METRIC}"):
                metric.asked += 1
                self._answer(metric.as_list())
            else:
                self._answer(_DISCOVERY)

        def _answer(self, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
