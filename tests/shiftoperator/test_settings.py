from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from shiftoperator.metrics import HEARTBEAT_SECONDS, Health, Metrics, OpsServer
from shiftoperator.settings import VARIABLES, SettingsError, from_environment
from shiftprotos import contract


def test_defaults() -> None:
    settings = from_environment({})
    assert settings.cluster_wide
    assert (settings.ops_port, settings.poll_seconds, settings.lease_name) == (8080, 2.0, "shift-operator")
    assert settings.identity


def test_everything_can_be_set() -> None:
    settings = from_environment(
        {
            "SHIFT_WATCH_NAMESPACES": " b, a ,b,",
            "SHIFT_METRICS_NAMESPACES": "prometheus,monitoring",
            "SHIFT_OPS_PORT": "0",
            "SHIFT_LEASE_SECONDS": "20",
            "SHIFT_RUNTIME_IMAGE": "r:1",
            "SHIFT_LOG_FORMAT": "JSON",
        }
    )
    assert settings.watch_namespaces == ("a", "b")
    assert settings.metrics_namespaces == ("monitoring", "prometheus")
    assert not settings.cluster_wide
    assert (settings.ops_port, settings.lease_seconds, settings.runtime_image) == (0, 20.0, "r:1")
    assert settings.log_format == "json"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHIFT_OPS_PORT", "99999"),
        ("SHIFT_OPS_PORT", "http"),
        ("SHIFT_LEASE_SECONDS", "1"),
        ("SHIFT_LOG_LEVEL", "loud"),
        ("SHIFT_LOG_FORMAT", "xml"),
        ("SHIFT_POLL_SECONDS", "0"),
    ],
)
def test_refusals_name_variable_and_value(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({name: value})
    assert name in str(caught.value)
    assert value in str(caught.value)


def test_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shiftoperator", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert all(name in done.stdout for name in VARIABLES)
    assert "examples:" in done.stdout


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_ops_port() -> None:
    now, metrics = [0.0], Metrics()
    health = Health(clock=lambda: now[0])
    server = OpsServer(0, metrics, health)
    server.start()
    try:
        assert get(server.port, "/livez")[0] == 200
        assert get(server.port, "/readyz")[0] == 503
        health.ready = True
        assert get(server.port, "/readyz")[0] == 200
        metrics.reconciles.labels("ok").inc()
        text = get(server.port, "/metrics")[1]
        assert f'{contract.METRIC_RECONCILES}{{outcome="ok"}} 1.0' in text
        assert all(
            name in text
            for name in (
                contract.METRIC_RECONCILE_SECONDS,
                contract.METRIC_POLICY_PUSH_SECONDS,
                contract.METRIC_LEADER,
                contract.METRIC_SCALE_DECISIONS,
            )
        )
        now[0] = HEARTBEAT_SECONDS + 1
        assert get(server.port, "/livez")[0] == 503
    finally:
        server.stop()


def test_json_log_lines_are_json() -> None:
    import logging

    from shiftoperator.__main__ import _JsonLines

    record = logging.LogRecord("shiftoperator", logging.INFO, "", 0, "scaled from %d to %d", (1, 2), None)
    assert json.loads(_JsonLines().format(record))["message"] == "scaled from 1 to 2"
