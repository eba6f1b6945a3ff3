"""The pod that the operator writes and the runtime that runs in it mean the same command line and the same ports."""

from __future__ import annotations

from typing import Any

import pytest
from shiftoperator import spec as specs
from shiftoperator.manifests.template import pod_template
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
