"""What is beyond a limit is refused with a reason, and what is within it is not harmed."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from shiftprotos.v1 import inference_pb2 as pb
from shiftruntime.server import app
from shiftruntime.server.limits import ServerLimits, control_channel, inference_channel
from shiftruntime.server.refusal import REASON_METADATA

from .waiting import SECONDS, eventually


def ask(request_id: str = "", **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(request_id=request_id, **({"text": "hi"} | fields))


async def text_of(call) -> str:
    return "".join([response.text async for response in call])


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await text_of(call)
    return caught.value


async def test_a_message_that_is_too_large_is_refused(start_pod):
    pod = await start_pod(limits=ServerLimits(message_bytes=2048))
    error = await refused(pod.inference.Generate(ask(text="x" * 3000), timeout=SECONDS))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2048" in error.details()
    assert await text_of(pod.inference.Generate(ask(), timeout=SECONDS)) == "hello world"


async def test_metadata_that_is_too_large_is_refused(start_pod):
    pod = await start_pod(limits=ServerLimits(metadata_bytes=2048))
    metadata = (("tale", "x" * 4000),)
    error = await refused(pod.inference.Generate(ask(), timeout=SECONDS, metadata=metadata))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await text_of(pod.inference.Generate(ask(), timeout=SECONDS)) == "hello world"


async def test_streams_beyond_the_limit_wait_in_the_client(start_pod):
    pod = await start_pod(limits=ServerLimits(streams=2))
    pod.engine.flow.clear()
    calls = [pod.inference.Generate(ask(f"r{i}"), timeout=SECONDS) for i in range(3)]
    await eventually(lambda: len(pod.engine.running) == 2)
    await asyncio.sleep(0.1)
    assert len(pod.engine.submitted) == 2
    pod.engine.flow.set()
    assert await asyncio.gather(*map(text_of, calls)) == ["hello world"] * 3


async def test_a_request_that_waits_too_long_for_its_first_token_ends(start_pod):
    pod = await start_pod(limits=ServerLimits(wait_seconds=0.1))
    pod.engine.flow.clear()
    error = await refused(pod.inference.Generate(ask("w"), timeout=SECONDS))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata())[REASON_METADATA] == "WaitedTooLong"
    assert "0.1 s" in error.details()
    assert pod.engine.aborted == ["w"]


async def test_waiting_is_over_with_the_first_token(start_pod):
    pod = await start_pod(limits=ServerLimits(wait_seconds=0.2))
    call = pod.inference.Generate(ask(), timeout=SECONDS)
    read = [(await anext(aiter(call))).text]
    pod.engine.flow.clear()
    await asyncio.sleep(0.3)
    pod.engine.flow.set()
    read += [response.text async for response in call]
    assert "".join(read) == "hello world"


async def test_a_request_ends_when_the_pod_allows_no_more(start_pod):
    pod = await start_pod(limits=ServerLimits(request_seconds=0.2))
    pod.engine.flow.clear()
    error = await refused(pod.inference.Generate(ask(), timeout=SECONDS))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    error = await refused(pod.inference.Generate(ask(timeout_seconds=5), timeout=SECONDS))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "timeout_seconds 5.0 is outside (0, 0.2]" in error.details()


async def connection_ended(pod) -> None:
    """The client heard GOAWAY: its channel holds no connection for new calls."""
    await eventually(lambda: pod.channel.get_state() is not grpc.ChannelConnectivity.READY)


async def test_an_old_connection_is_sent_away_and_its_stream_completes(start_pod):
    pod = await start_pod(limits=ServerLimits(connection_age_seconds=0.3))
    pod.engine.flow.clear()
    call = pod.inference.Generate(ask(), timeout=SECONDS)
    await call.initial_metadata()
    await connection_ended(pod)
    assert await pod.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=SECONDS)  # over a new connection
    pod.engine.flow.set()
    assert await text_of(call) == "hello world"


async def test_a_drain_says_goaway_and_open_streams_complete(start_pod, monkeypatch):
    monkeypatch.setattr(app, "GOAWAY_AFTER_SECONDS", 0.2)
    pod = await start_pod()
    pod.engine.flow.clear()
    call = pod.inference.Generate(ask(), timeout=SECONDS)
    await call.initial_metadata()
    pod.terminate()
    await connection_ended(pod)
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # the port is closed; another pod is meant
        await pod.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    pod.engine.flow.set()
    assert await text_of(call) == "hello world"
    assert await pod.exit_code() == 0


def test_no_stream_is_cut_before_its_longest_time():
    options = dict(inference_channel(ServerLimits(request_seconds=77.0)))
    assert options["grpc.max_connection_age_grace_ms"] == 77_000
    assert (
        dict(inference_channel(ServerLimits(connection_grace_seconds=5.0)))["grpc.max_connection_age_grace_ms"] == 5000
    )


def test_connections_may_live_for_ever_and_those_of_the_operator_do():
    assert "grpc.max_connection_age_ms" not in dict(inference_channel(ServerLimits(connection_age_seconds=0.0)))
    assert "grpc.max_connection_age_ms" not in dict(control_channel(ServerLimits()))
