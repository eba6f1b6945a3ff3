"""Ops HTTP, health, reflection and limits of the ports."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from shiftprotos import contract
from shiftprotos.v1 import inference_pb2 as pb
from shiftruntime.server import ops

from .waiting import SECONDS

_M = (("model_name", "m"),)


async def samples(pod) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    status, text = await pod.http("/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_have_the_names_of_the_contract(pod):
    values = await _after_a_stream(pod)
    assert values[contract.METRIC_STEPS, (("gear", "sp2"),)] == 3
    assert values[contract.METRIC_STEP_TOKENS, (("gear", "tp2"),)] == 48
    assert values[contract.METRIC_STEP_SECONDS + "_sum", (("gear", "tp2"),)] == 0.03
    assert values[contract.METRIC_STEP_SECONDS + "_count", (("gear", "tp2"),)] == 3
    assert values[contract.METRIC_STEP_SECONDS + "_bucket", (("gear", "tp2"), ("le", "0.005"))] == 1
    assert values[contract.METRIC_STEP_SECONDS + "_bucket", (("gear", "tp2"), ("le", "0.01"))] == 3
    assert values[contract.METRIC_SHIFTS, ()] == 4
    assert values[contract.METRIC_REQUESTS, (("outcome", "stop"),)] == 1
    assert values[contract.METRIC_REQUESTS, (("outcome", "rejected"),)] == 0
    assert values[contract.METRIC_RUNNING, ()] == 0
    assert values[contract.METRIC_WAITING, ()] == 0
    assert (values[contract.METRIC_KV_FREE, ()], values[contract.METRIC_KV_TOTAL, ()]) == (90, 100)
    assert values[contract.METRIC_KV_CACHED, ()] == 30
    assert (values[contract.METRIC_PREFIX_QUERIED, ()], values[contract.METRIC_PREFIX_HIT, ()]) == (64, 48)
    assert values[contract.METRIC_PREEMPTIONS, ()] == 2
    assert values[contract.METRIC_TTFT + "_count", ()] == 1
    assert values[contract.METRIC_TPOT + "_count", ()] == 1
    assert values[contract.METRIC_POLICY_GENERATION, (("state", "applied"),)] == 0
    assert values[contract.METRIC_STARTUP_SECONDS, (("phase", "load"),)] == 1.5


async def _after_a_stream(pod) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """A client may have the end of its stream a moment before the pod has counted it."""
    async with asyncio.timeout(SECONDS):
        await _drain_stream(pod)
        while not (values := await samples(pod))[contract.METRIC_REQUESTS, (("outcome", "stop"),)]:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
    return values


async def _drain_stream(pod) -> None:
    async for _ in pod.inference.Generate(pb.GenerateRequest(text="x"), timeout=SECONDS):
        pass


async def test_metrics_come_under_the_names_of_vllm_as_well(start_pod):
    pod = await start_pod(served_name="m")
    found = await _after_a_stream(pod)
    values = {name.removeprefix("vllm:"): value for (name, labels), value in found.items() if labels == _M}
    assert (values["num_requests_running"], values["num_requests_waiting"]) == (0, 0)
    assert values["kv_cache_usage_perc"] == pytest.approx(0.1)  # 90 of 100 blocks are free
    assert (values["prompt_tokens_total"], values["generation_tokens_total"]) == (1, 12)
    assert (values["prefix_cache_queries_total"], values["prefix_cache_hits_total"]) == (64, 48)
    assert values["num_preemptions_total"] == 2
    assert (values["time_to_first_token_seconds_count"], values["inter_token_latency_seconds_count"]) == (1, 11)
    assert values["request_time_per_output_token_seconds_count"] == 1
    assert values["e2e_request_latency_seconds_count"] == 1
    assert values["request_queue_time_seconds_sum"] == 0.25
    success = {
        dict(labels)["finished_reason"]: value
        for (name, labels), value in (await samples(pod)).items()
        if name == "vllm:request_success_total"
    }
    assert success == {"stop": 1, "length": 0, "abort": 0}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/livez", 405), ("GET", "/livez?verbose=1", 200), ("HEAD", "/readyz", 200)],
)
async def test_only_three_paths_can_be_read(pod, method, path, status):
    answer, body = await pod.http(path, method)
    assert answer == status
    assert bool(body) is (method != "HEAD")


@pytest.mark.parametrize("garbage", [b"\r\n\r\n", b"\xff\xfe nonsense\r\n\r\n", b"GET " + b"x" * 70_000, b""])
async def test_garbage_ends_its_own_connection_only(pod, garbage):
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", pod.ports.ops)
        writer.write(garbage)
        writer.write_eof()
        with suppress(ConnectionResetError):  # closed with the rest of the garbage unread
            await reader.read()
        writer.close()
    assert (await pod.http("/livez"))[0] == 200


async def test_silent_connections_do_not_fail_the_probes(pod, monkeypatch):
    monkeypatch.setattr(ops, "HEAD_SECONDS", 60.0)
    writers = [(await asyncio.open_connection("127.0.0.1", pod.ports.ops))[1] for _ in range(ops.MAX_CONNECTIONS + 20)]
    for _ in range(3):
        assert (await pod.http("/livez"))[0] == 200
    for writer in writers:
        writer.close()


async def test_a_silent_connection_is_closed_soon(pod):
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", pod.ports.ops)
        assert await reader.read() == b""
        writer.close()


async def test_vllm_metrics_count_a_request_whose_client_left(start_pod):
    pod = await start_pod(served_name="m")
    pod.engine.flow.clear()
    call = pod.inference.Generate(pb.GenerateRequest(text="hi"), timeout=SECONDS)
    await call.initial_metadata()
    call.cancel()
    async with asyncio.timeout(SECONDS):
        while not pod.engine.aborted:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.005)
    found = await samples(pod)
    ended = {
        dict(labels)["finished_reason"]: v for (name, labels), v in found.items() if name.endswith("success_total")
    }
    assert ended["abort"] == 1
    assert found["vllm:prompt_tokens_total", _M] == 2


async def test_health_watch_sees_the_drain(start_pod):
    pod = await start_pod()
    stub = health_pb2_grpc.HealthStub(pod.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="shiftparallel.v1.Inference"), timeout=SECONDS)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    pod.terminate()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await pod.exit_code() == 0


async def test_health_lists_every_service_with_its_status(start_pod):
    pod = await start_pod(lambda engine: engine.may_start.clear(), ready=False)
    stub = health_pb2_grpc.HealthStub(pod.channel)
    names = {"", "shiftparallel.v1.Inference", "inference.GRPCInferenceService"}
    status = health_pb2.HealthCheckResponse

    async def listed() -> dict[str, int]:
        answer = await stub.List(health_pb2.HealthListRequest(), timeout=SECONDS)
        return {name: one.status for name, one in answer.statuses.items()}

    assert await listed() == dict.fromkeys(names, status.NOT_SERVING)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=SECONDS) for name in names]
    assert [(await watch.read()).status for watch in watches] == [status.NOT_SERVING] * 3
    pod.engine.may_start.set()
    assert [(await watch.read()).status for watch in watches] == [status.SERVING] * 3
    assert await listed() == dict.fromkeys(names, status.SERVING)


async def services(pod) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(pod.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=SECONDS)
    async for answer in call:
        return sorted(service.name for service in answer.list_services_response.service)
    return []


async def test_reflection_lists_the_services(pod):
    assert await services(pod) == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "shiftparallel.v1.Inference",
    ]


async def test_reflection_can_be_turned_off(start_pod):
    pod = await start_pod(reflection=False)
    call = reflection_pb2_grpc.ServerReflectionStub(pod.channel).ServerReflectionInfo(timeout=SECONDS)
    # Nothing is written: a write that loses the race with the refusal would end the call with a local INTERNAL.
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused(pod):
    call = pod.inference.Generate(pb.GenerateRequest(text="x" * (9 * 2**20)), timeout=SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await _drain_stream(pod)
