"""The pod that the operator writes and the runtime that runs in it mean the same command line and the same ports."""

from __future__ import annotations

from typing import Any

import pytest
from shiftoperator import spec as specs
from shiftoperator.manifests.template import pod_template
from shiftoperator.spec.observability import LOG_FORMATS, LOG_LEVELS
from shiftruntime.log import LogFormat, LogLevel
from shiftruntime.server.options import parse


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_pod_declares_every_port_that_its_runtime_opens_and_no_other(gpus: int) -> None:
    resource: dict[str, Any] = {
        "model": {"uri": "pvc://models/gemma.gguf"},
        "parallelism": {"gpus": gpus},
        "runtime": {"device": "cpu"},
    }
    (container,) = pod_template("gemma", specs.parse(resource), "0" * 8, "runtime:1")["spec"]["containers"]
    options = parse(container["args"], {})
    opened = {options.port, options.openai_port, options.control_port, options.ops_port}
    assert opened == {port["containerPort"] for port in container["ports"]}
    assert options.engine.ranks == gpus


def test_the_runtime_takes_every_option_that_a_spec_can_ask_for() -> None:
    resource: dict[str, Any] = {
        "model": {"uri": "pvc://models/gemma.gguf"},
        "parallelism": {"gpus": 2},
        "shift": {"calibration": {"mode": "Keep"}},
        "observability": {"logs": {"format": "json", "level": "debug", "requests": True}},
        "service": {"tls": {"secretName": "cert", "clientAuth": "Required"}},
    }
    (container,) = pod_template("gemma", specs.parse(resource), "0" * 8, "runtime:1")["spec"]["containers"]
    options = parse(container["args"], {})
    assert (options.engine.calibrate, options.engine.calibration_file) == (True, "/tmp/calibration.json")
    assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert (str(options.log_format), str(options.log_level), options.log_requests) == ("json", "debug", True)
    assert options.tls is not None
    assert [path.name for path in options.tls.paths] == ["tls.crt", "tls.key", "ca.crt"]
    assert not options.tls_control, "the control port has certificates of its own"
    resource["shift"]["calibration"]["mode"] = "Off"
    (container,) = pod_template("gemma", specs.parse(resource), "0" * 8, "runtime:1")["spec"]["containers"]
    assert not parse(container["args"], {}).engine.calibrate


def test_the_words_for_logs_are_those_of_the_runtime() -> None:
    assert set(LOG_FORMATS) == set(map(str, LogFormat))
    assert set(LOG_LEVELS) == set(map(str, LogLevel))
