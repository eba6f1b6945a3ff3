"""Control over real gRPC: token, state, policy with its fence, calibration, drain."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import grpc
import pytest
from shiftprotos.v1 import control_pb2 as pb
from shiftprotos.v1 import inference_pb2

SECONDS = 10.0
TOKEN = "correct horse"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


@pytest.fixture
async def guarded(start_pod, serve_options, token_file):
    environment = replace(serve_options.environment, control_token_file=token_file)
    return await start_pod(environment=environment)


async def status_of(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize(
    "metadata",
    [(), bearer("wrong"), bearer(""), (("authorization", TOKEN),), (("authorization", f"bearer{TOKEN}"),)],
)
async def test_without_the_token_nothing_is_answered(guarded, metadata):
    for call in (
        guarded.control.GetState(pb.GetStateRequest(), metadata=metadata, timeout=SECONDS),
        guarded.control.Drain(pb.DrainRequest(), metadata=metadata, timeout=SECONDS),
    ):
        error = await status_of(call)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert TOKEN not in error.details()
    assert not guarded.engine.draining


async def test_the_token_opens_and_may_be_replaced(guarded, token_file):
    ask = guarded.control.GetState
    assert (await ask(pb.GetStateRequest(), metadata=bearer(TOKEN), timeout=SECONDS)).ready
    new = token_file.with_name("new")
    new.write_text("battery staple")
    os.replace(new, token_file)  # as the kubelet does with a Secret
    assert (await ask(pb.GetStateRequest(), metadata=bearer("battery staple"), timeout=SECONDS)).ready
    error = await status_of(ask(pb.GetStateRequest(), metadata=bearer(TOKEN), timeout=SECONDS))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    token_file.unlink()  # between two mounts: the last token stays in force
    assert (await ask(pb.GetStateRequest(), metadata=bearer("battery staple"), timeout=SECONDS)).ready


async def test_without_a_token_file_control_stays_on_loopback(start_pod, caplog):
    pod = await start_pod(host="0.0.0.0")  # noqa: S104 - what a pod does
    assert "listens on 127.0.0.1 only" in caplog.text
    assert (await pod.control.GetState(pb.GetStateRequest(), timeout=SECONDS)).ready


async def test_state_carries_what_the_engine_knows(pod):
    state = await pod.control.GetState(pb.GetStateRequest(), timeout=SECONDS)
    assert [(g.name, g.sequence, g.tensor, g.allowed) for g in state.gears] == [
        ("tp2", 1, 2, True),
        ("sp2", 2, 1, True),
    ]
    cost = state.gears[0].costs[0]
    assert (cost.tokens, cost.median_seconds, cost.spread_seconds, cost.samples) == (16, 0.01, 0.001, 5)
    assert (state.crossover.tokens, state.crossover.reason) == (0, "NoCrossover")
    assert (state.threshold_tokens, state.threshold_source) == (256, pb.THRESHOLD_SOURCE_DEFAULT)
    assert (state.self_check.passed, state.shifts, state.dtype) == (True, 4, "float32")
    assert [(phase.name, phase.bytes, phase.done) for phase in state.phases] == [("load", 2**21, True)]
    assert state.version


def policy(**fields: Any) -> pb.SetPolicyRequest:
    return pb.SetPolicyRequest(policy=pb.Policy(**fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mode": pb.POLICY_MODE_AUTO, "threshold_tokens": 64}, ("Auto", 64, None)),
        ({"mode": pb.POLICY_MODE_LATENCY}, ("Latency", None, None)),
        ({"mode": pb.POLICY_MODE_THROUGHPUT}, ("Throughput", None, None)),
        ({"gear": "sp2"}, ("Auto", None, "sp2")),
    ],
)
async def test_a_policy_reaches_the_engine(pod, fields, expected):
    answer = await pod.control.SetPolicy(policy(generation=7, **fields), timeout=SECONDS)
    assert (answer.generation_accepted, answer.generation_applied) == (7, 7)
    held = pod.engine.policy
    assert (held.mode, held.threshold_tokens, held.gear) == expected
    state = await pod.control.GetState(pb.GetStateRequest(), timeout=SECONDS)
    assert (state.policy.generation, state.policy.gear) == (7, fields.get("gear", ""))
    assert state.policy.mode == fields.get("mode", pb.POLICY_MODE_AUTO)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"mode": pb.POLICY_MODE_LATENCY, "generation": 4}, "FAILED_PRECONDITION", ["4", "5"]),
        ({"mode": pb.POLICY_MODE_LATENCY, "generation": 5}, "INVALID_ARGUMENT", ["5", "raise the generation"]),
        ({"mode": 99, "generation": 6}, "INVALID_ARGUMENT", ["99"]),
        ({"threshold_tokens": 2**20 + 1, "generation": 6}, "INVALID_ARGUMENT", ["1048577", "1..1048576"]),
        ({"gear": "sp3", "generation": 6}, "INVALID_ARGUMENT", ["sp3", "tp2, sp2"]),
        ({"gear": "fast", "generation": 6}, "INVALID_ARGUMENT", ["fast"]),
    ],
)
async def test_old_and_wrong_policies_are_refused(pod, fields, code, words):
    await pod.control.SetPolicy(policy(mode=pb.POLICY_MODE_THROUGHPUT, generation=5), timeout=SECONDS)
    error = await status_of(pod.control.SetPolicy(policy(**fields), timeout=SECONDS))
    assert error.code() is grpc.StatusCode[code]
    assert [word for word in words if word not in error.details()] == []
    assert pod.engine.policy.mode == "Throughput"


async def test_a_request_without_policy_is_refused(pod):
    error = await status_of(pod.control.SetPolicy(pb.SetPolicyRequest(), timeout=SECONDS))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_calibration_needs_an_idle_pod(pod):
    answer = await pod.control.Calibrate(pb.CalibrateRequest(), timeout=SECONDS)
    assert [gear.name for gear in answer.gears] == ["tp2", "sp2"]
    pod.engine.flow.clear()
    call = pod.inference.Generate(inference_pb2.GenerateRequest(text="x"), timeout=SECONDS)
    await call.initial_metadata()
    error = await status_of(pod.control.Calibrate(pb.CalibrateRequest(), timeout=SECONDS))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "1 request runs")


async def test_drain_is_idempotent_and_keeps_the_process(pod):
    pod.engine.flow.clear()
    call = pod.inference.Generate(inference_pb2.GenerateRequest(text="x"), timeout=SECONDS)
    await call.initial_metadata()
    for _ in range(2):
        assert (await pod.control.Drain(pb.DrainRequest(), timeout=SECONDS)).running_requests == 1
    assert (await pod.http("/readyz"))[0] == 503
    pod.engine.flow.set()
    assert "".join([response.text async for response in call]) == "hello world"
    assert not pod.task.done()


async def test_control_waits_for_the_engine(start_pod):
    pod = await start_pod(lambda engine: engine.may_start.clear(), ready=False)
    for call in (
        pod.control.SetPolicy(policy(generation=1), timeout=SECONDS),
        pod.control.Calibrate(pb.CalibrateRequest(), timeout=SECONDS),
        pod.control.Drain(pb.DrainRequest(), timeout=SECONDS),
    ):
        assert (await status_of(call)).code() is grpc.StatusCode.UNAVAILABLE


async def test_control_is_not_on_the_inference_port(pod):
    from shiftprotos.v1 import control_pb2_grpc

    stub = control_pb2_grpc.ControlStub(pod.channel)
    error = await status_of(stub.GetState(pb.GetStateRequest(), timeout=SECONDS))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
