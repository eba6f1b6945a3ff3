"""Start-up, drain, failure and exit of a pod, as clients, probes and the kubelet see them."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from shiftprotos.v1 import control_pb2
from shiftprotos.v1 import inference_pb2 as pb
from shiftruntime.engine.client import EngineFailed
from shiftruntime.errors import StartupError
from shiftruntime.server.app import serve

SECONDS = 10.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(pod, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(pod.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)).status


async def accepted(pod, request_id: str = "r"):
    call = pod.inference.Generate(pb.GenerateRequest(request_id=request_id, text="x"), timeout=SECONDS)
    await call.initial_metadata()
    return call


async def until_draining(pod) -> None:
    async with asyncio.timeout(SECONDS):
        while not pod.engine.draining:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.005)


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


async def test_everything_answers_while_the_model_loads(start_pod):
    pod = await start_pod(lambda engine: engine.may_start.clear(), ready=False)
    state = await pod.control.GetState(control_pb2.GetStateRequest(), timeout=SECONDS)
    assert (state.ready, state.ranks, state.base_gear) == (False, 2, "sp2")
    assert [(p.name, p.bytes, p.done) for p in state.phases] == [("load", 2**20, False)]
    assert await pod.http("/livez") == (200, "alive\n")
    assert await pod.http("/readyz") == (503, "starting: load: 1.0 MiB of 2.0 MiB after 0.5 s\n")
    assert await health(pod) == NOT_SERVING
    error = await refused(pod.inference.Generate(pb.GenerateRequest(text="x"), timeout=SECONDS))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "load: 1.0 MiB" in error.details()
    pod.engine.may_start.set()
    await pod.until_ready()
    assert [await health(pod, s) for s in ("", "shiftparallel.v1.Inference")] == [SERVING, SERVING]


async def test_sigterm_lets_running_streams_end_and_refuses_new_ones(start_pod):
    pod = await start_pod()
    pod.engine.flow.clear()
    call = await accepted(pod)
    pod.terminate()
    await until_draining(pod)
    assert await health(pod) == NOT_SERVING
    assert await pod.http("/readyz") == (503, "draining\n")
    error = await refused(pod.inference.Generate(pb.GenerateRequest(text="x"), timeout=SECONDS))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "drains" in error.details()
    state = await pod.control.GetState(control_pb2.GetStateRequest(), timeout=SECONDS)
    assert (state.ready, state.draining) == (False, True)
    pod.engine.flow.set()
    assert "".join([response.text async for response in call]) == "hello world"
    assert await pod.exit_code() == 0
    assert pod.engine.stopped
    assert not pod.termination_log.exists()


async def test_what_outlives_the_drain_ends_unavailable(start_pod):
    pod = await start_pod(drain_seconds=0.2)
    pod.engine.flow.clear()
    call = await accepted(pod)
    pod.terminate()
    error = await refused(call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "drained for 0.2 s" in error.details()
    assert pod.engine.aborted == ["r"]
    assert await pod.exit_code() == 0


async def test_a_second_signal_ends_the_drain(start_pod):
    pod = await start_pod(drain_seconds=3600.0)
    pod.engine.flow.clear()
    call = await accepted(pod)
    pod.terminate()
    await until_draining(pod)
    pod.terminate()
    assert (await refused(call)).code() is grpc.StatusCode.UNAVAILABLE
    assert await pod.exit_code() == 0


async def test_a_deaf_engine_does_not_keep_the_pod_from_ending(start_pod):
    pod = await start_pod(lambda engine: setattr(engine, "deaf", True), drain_seconds=0.1)
    pod.engine.flow.clear()
    call = await accepted(pod)
    pod.terminate()
    await refused(call)
    assert await pod.exit_code() == 0


async def test_sigterm_during_start_up_ends_at_once(start_pod):
    pod = await start_pod(lambda engine: engine.may_start.clear(), ready=False)
    pod.terminate()
    assert await pod.exit_code() == 0
    assert pod.engine.stopped


async def test_a_dead_rank_ends_streams_and_the_process(start_pod):
    pod = await start_pod()
    pod.engine.flow.clear()
    calls = [await accepted(pod, f"r{i}") for i in range(3)]
    pod.engine.die("rank 1 was killed by signal 9")
    for call in calls:
        error = await refused(call)
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "rank 1 was killed by signal 9")
    assert await pod.exit_code() == 1
    assert json.loads(pod.termination_log.read_text()) == {
        "reason": "RankFailed",
        "message": "rank 1 was killed by signal 9",
    }


async def test_an_engine_that_dies_idle_ends_the_process(start_pod):
    pod = await start_pod()
    pod.engine.die()
    assert await pod.exit_code() == 1
    assert json.loads(pod.termination_log.read_text())["reason"] == "RankFailed"


async def test_an_engine_that_dies_while_draining_is_a_failure(start_pod):
    pod = await start_pod()
    pod.engine.flow.clear()
    call = await accepted(pod)
    pod.terminate()
    await until_draining(pod)
    pod.engine.die()
    assert (await refused(call)).code() is grpc.StatusCode.UNAVAILABLE
    assert await pod.exit_code() == 1


async def test_a_failed_start_leaves_its_reason(start_pod):
    pod = await start_pod(lambda engine: engine.may_start.clear(), ready=False)
    pod.engine.start_failure = EngineFailed("InvalidLayout", "6 query heads do not divide over 4 ranks")
    pod.engine.may_start.set()
    assert await pod.exit_code() == 1
    assert json.loads(pod.termination_log.read_text()) == {
        "reason": "InvalidLayout",
        "message": "6 query heads do not divide over 4 ranks",
    }


async def test_a_model_without_tokenizer_ends_the_start_at_once(serve_options, fake_engine_class, caplog):
    def load_text(model):
        raise StartupError("ModelNotFound", f"{model} does not exist")

    async with asyncio.timeout(SECONDS):
        assert await serve(serve_options, fake_engine_class, load_text) == 1
    log = serve_options.environment.termination_log
    assert json.loads(log.read_text()) == {"reason": "ModelNotFound", "message": "fake.gguf does not exist"}
    assert "ModelNotFound: fake.gguf does not exist" in caplog.text


@pytest.mark.parametrize("option", ["port", "control_port", "ops_port"])
async def test_a_taken_port_is_named(serve_options, fake_engine_class, fake_text, option):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        options = replace(serve_options, **{option: taken})
        async with asyncio.timeout(SECONDS):
            assert await serve(options, fake_engine_class, lambda model: fake_text) == 1
    words = json.loads(options.environment.termination_log.read_text())
    assert words["reason"] == "InvalidArgument"
    assert f"port {taken}" in words["message"]
    assert f"--{option.replace('_', '-')}" in words["message"]


async def test_the_ready_line_names_gears_threshold_and_ports(start_pod, caplog):
    caplog.set_level("INFO")
    pod = await start_pod()
    lines = [record.getMessage() for record in caplog.records]
    assert "phase load: 2.0 MiB in 1.5 s" in lines
    ready = next(line for line in lines if line.startswith("ready: "))
    assert "tp2, sp2; threshold 256 tokens (source: Default)" in ready
    assert f"127.0.0.1:{pod.ports.inference}, control {pod.ports.control}, ops {pod.ports.ops}" in ready
