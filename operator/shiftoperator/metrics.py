"""The operator's own numbers, and the HTTP port that shows them together with its health."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from shiftprotos import contract

# The event loop stamps its heartbeat every second; a loop stuck for this long is dead to the kubelet.
HEARTBEAT_SECONDS = 30.0

# Of each ShiftDeployment: what it means, and the label beside namespace and name.
_OF_DEPLOYMENT = {
    contract.METRIC_CONDITION: ("1 True, 0 False, -1 Unknown", "condition"),
    contract.METRIC_PODS: ("Pods asked for, pods there, pods ready", "state"),
    contract.METRIC_CAPACITY: ("Tokens per second that all ready pods measured in a gear", "gear"),
    contract.METRIC_DEMAND: ("Tokens per second that arrive as prompts and that are made", ""),
    contract.METRIC_DEPLOYMENT_RUNNING: ("Requests that run in ready pods", ""),
    contract.METRIC_DEPLOYMENT_WAITING: ("Requests that wait in ready pods", ""),
    contract.METRIC_OLDEST_WAIT: ("Age of the oldest waiting request", ""),
    contract.METRIC_TTFT_P95: ("95th percentile of the time to first token over a minute, slowest pod", ""),
    contract.METRIC_TPOT_P95: ("95th percentile of the time per output token over a minute, slowest pod", ""),
    contract.METRIC_SET_GENERATION: ("Generation of the policy last set", ""),
}

# Values by the further label ("" where there is none), by metric.
Figures = Mapping[str, Mapping[str, float]]


class DeploymentMetrics:
    """Gauges that come and go with their ShiftDeployment."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges = {
            name: Gauge(name, text, ["namespace", "name", *([label] if label else [])], registry=registry)
            for name, (text, label) in _OF_DEPLOYMENT.items()
        }
        self._shown: dict[tuple[str, str], set[tuple[str, tuple[str, ...]]]] = {}

    def show(self, key: tuple[str, str], figures: Figures) -> None:
        """Replaces what was shown of this one."""
        shown: set[tuple[str, tuple[str, ...]]] = set()
        for name, values in figures.items():
            for label, value in values.items():
                labels: tuple[str, ...] = (*key, label) if label else key
                self._gauges[name].labels(*labels).set(value)
                shown.add((name, labels))
        self._remove(self._shown.get(key, set()) - shown)
        self._shown[key] = shown

    def forget(self, key: tuple[str, str]) -> None:
        self._remove(self._shown.pop(key, set()))

    def _remove(self, series: set[tuple[str, tuple[str, ...]]]) -> None:
        for name, labels in series:
            self._gauges[name].remove(*labels)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            contract.METRIC_RECONCILES, "Reconciles by outcome", ["outcome"], registry=self.registry
        )
        self.reconcile_seconds = Histogram(
            contract.METRIC_RECONCILE_SECONDS, "Time of one reconcile", registry=self.registry
        )
        self.policy_push_seconds = Histogram(
            contract.METRIC_POLICY_PUSH_SECONDS,
            "From the change seen to the answer of the last pod",
            registry=self.registry,
        )
        self.leader = Gauge(contract.METRIC_LEADER, "1 while this process leads", registry=self.registry)
        self.scale_decisions = Counter(
            contract.METRIC_SCALE_DECISIONS, "Decisions to scale", ["decision", "reason"], registry=self.registry
        )
        self.deployments = DeploymentMetrics(self.registry)


class Health:
    """What the probes ask for; written by the event loop, read by the ops server's threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat = clock()
        self.ready = False

    def beat(self) -> None:
        self._beat = self._clock()

    @property
    def alive(self) -> bool:
        return self._clock() - self._beat < HEARTBEAT_SECONDS


class OpsServer:
    """/livez, /readyz and /metrics on threads of their own: a blocked event loop must show as not alive."""

    def __init__(self, port: int, metrics: Metrics, health: Health) -> None:
        self._server = ThreadingHTTPServer(("", port), _handler(metrics, health))
        self._thread = threading.Thread(target=self._server.serve_forever, name="ops", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5.0)


def _handler(metrics: Metrics, health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, generate_latest(metrics.registry), CONTENT_TYPE_LATEST)
            elif self.path == "/livez":
                self._answer(200 if health.alive else 503, b"alive\n" if health.alive else b"event loop is stuck\n")
            elif self.path == "/readyz":
                self._answer(200 if health.ready else 503, b"ready\n" if health.ready else b"starting\n")
            else:
                self._answer(404, b"use /livez, /readyz or /metrics\n")

        def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes every few seconds are no news."""

    return Handler
