"""Clients that stop reading: their requests end in time all the same, on every route."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import replace

import grpc
import pytest
from shiftprotos.kserve import open_inference_pb2 as kserve_pb
from shiftprotos.kserve import open_inference_pb2_grpc
from shiftprotos.v1 import inference_pb2 as pb
from shiftruntime.server import deadlines, inference, kserve, ops
from shiftruntime.server.lifecycle import Lifecycle
from shiftruntime.server.limits import ServerLimits
from shiftruntime.server.openai.app import OpenAiRoutes
from shiftruntime.server.openai.completions import CompletionAnswer

from .waiting import SECONDS, eventually

MUCH = "x" * 2**20  # far more than a connection holds on its own
HUGE = "x" * 2**25  # also than the kernel takes for it


async def read_all(call) -> None:
    async with asyncio.timeout(SECONDS):
        async for _ in call:
            pass


@pytest.fixture
def much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every delta of the native route is large."""
    small = inference.response_to_wire

    def large(delta):
        response = small(delta)
        response.text = MUCH
        return response

    monkeypatch.setattr(inference, "response_to_wire", large)


async def ended(pod, outcome: str) -> bool:
    _, text = await pod.http("/metrics")
    return f'shift_requests_total{{outcome="{outcome}"}} 1.0' in text


@pytest.mark.parametrize("why", ["deadline", "abort"])
async def test_a_native_stream_that_nobody_reads_ends_in_time(start_pod, much, monkeypatch, why):
    if why == "abort":
        monkeypatch.setattr(deadlines, "WRITE_SECONDS", 0.5)
    limits = replace(ServerLimits(), request_seconds=1.0 if why == "deadline" else 60.0)
    pod = await start_pod(limits=limits)
    call = pod.inference.Generate(pb.GenerateRequest(text="hi"))
    await call.initial_metadata()
    await eventually(lambda: pod.engine.aborted)
    async with asyncio.timeout(SECONDS):
        while not await ended(pod, why):  # noqa: ASYNC110 - seen from outside only
            await asyncio.sleep(0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # what was under way, and then the reason
        await read_all(call)
    expected = {"deadline": grpc.StatusCode.DEADLINE_EXCEEDED, "abort": grpc.StatusCode.CANCELLED}
    assert caught.value.code() is expected[why]


def kserve_request(request_id: str) -> kserve_pb.ModelInferRequest:
    message = kserve_pb.ModelInferRequest(model_name="fake", id=request_id)
    message.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"hi")
    message.parameters["stream"].bool_param = True
    return message


@pytest.mark.parametrize("why", ["deadline", "abort"])
async def test_a_kserve_stream_that_nobody_reads_ends_in_time(start_pod, monkeypatch, why):
    """At its deadline each request ends; without a read for long enough the call does."""
    small = kserve._delta_response

    def large(*args, **kwargs):
        response = small(*args, **kwargs)
        response.parameters["much"].string_param = MUCH
        return response

    monkeypatch.setattr(kserve, "_delta_response", large)
    monkeypatch.setattr(deadlines, "WRITE_SECONDS", 0.5 if why == "abort" else 3.0)
    limits = replace(ServerLimits(), request_seconds=1.0 if why == "deadline" else 60.0)
    pod = await start_pod(limits=limits)
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(pod.channel)
    call = stub.ModelStreamInfer(iter([kserve_request("a"), kserve_request("b")]))
    await call.initial_metadata()
    await eventually(lambda: len(pod.engine.aborted) == 2)
    await eventually(lambda: not pod.engine.running)
    await asyncio.sleep(4.0 if why == "deadline" else 1.0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(call)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert "took nothing of its answer" in caught.value.details()


async def test_a_kserve_stream_that_is_read_late_goes_on(start_pod, monkeypatch):
    """Requests that passed their deadline meanwhile have said so; the stream takes new ones."""
    pod = await start_pod(limits=replace(ServerLimits(), request_seconds=1.0))
    pod.engine.flow.clear()
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(pod.channel)
    call = stub.ModelStreamInfer(timeout=SECONDS)
    await call.write(kserve_request("late"))
    await eventually(lambda: pod.engine.aborted)
    pod.engine.flow.set()
    assert (await call.read()).error_message.startswith("DeadlineExceeded")
    await call.write(kserve_request("next"))
    assert (await call.read()).infer_response.id == "next"
    await call.done_writing()


@pytest.mark.parametrize("why", ["deadline", "slow"])
async def test_an_event_stream_that_nobody_reads_is_cut_in_time(start_pod, monkeypatch, why):
    if why == "slow":
        monkeypatch.setattr(deadlines, "WRITE_SECONDS", 0.5)
    monkeypatch.setattr(CompletionAnswer, "add", lambda answer, prompt, delta: [{"text": MUCH}])
    pod = await start_pod(limits=replace(ServerLimits(), request_seconds=1.0 if why == "deadline" else 60.0))
    reader, writer = await _ask_for_events(pod)
    assert b"200 OK" in await reader.readline()
    await eventually(lambda: pod.engine.aborted)
    await _cut(reader)
    writer.close()


async def test_a_failure_of_ours_after_the_events_began_cuts_the_connection(start_pod, monkeypatch):
    """A second response in the middle of the first would be taken for text."""

    def broken(answer, prompt, delta):
        raise ValueError("a bug")

    monkeypatch.setattr(CompletionAnswer, "add", broken)
    pod = await start_pod()
    reader, writer = await _ask_for_events(pod)
    await _cut(reader, b"HTTP/1.1 500")
    await eventually(lambda: not pod.engine.running)
    writer.close()


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/models/nothing", "/v1/models"])
async def test_a_whole_answer_that_nobody_reads_is_cut_in_time(start_pod, monkeypatch, caplog, route):
    monkeypatch.setattr(deadlines, "WRITE_SECONDS", 0.5)
    monkeypatch.setattr(CompletionAnswer, "body", lambda answer: {"text": HUGE})
    monkeypatch.setattr(OpenAiRoutes, "_card", lambda routes: {"id": HUGE})
    caplog.set_level("DEBUG", logger="shiftruntime.server.openai.respond")
    pod = await start_pod()
    request = {"prompt": "hi"} if route == "/v1/completions" else None
    reader, writer = await _ask(pod.ports.openai, route, request)
    await eventually(lambda: f"{route} reads nothing" in caplog.text)
    assert await _rest(reader) < len(HUGE)
    writer.close()


async def test_a_whole_answer_that_is_read_late_but_in_time_arrives(start_pod, monkeypatch):
    """And the connection takes the next request."""
    monkeypatch.setattr(CompletionAnswer, "body", lambda answer: {"text": HUGE})
    pod = await start_pod()
    reader, writer = await _ask(pod.ports.openai, "/v1/completions", {"prompt": "hi"})
    await asyncio.sleep(0.5)
    async with asyncio.timeout(SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        assert len(await reader.readexactly(length)) > len(HUGE)
        writer.write(b"GET /health HTTP/1.1\r\nHost: pod\r\n\r\n")
        assert b"200 OK" in await reader.readline()
    writer.close()


async def test_metrics_that_nobody_reads_are_cut_in_time(start_pod, monkeypatch, caplog):
    monkeypatch.setattr(ops, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(Lifecycle, "sentence", lambda lifecycle: HUGE)
    caplog.set_level("DEBUG", logger="shiftruntime.server.ops")
    pod = await start_pod(ready=False)
    reader, writer = await _ask(pod.ports.ops, "/readyz")
    await eventually(lambda: "ops connection ended: TimeoutError" in caplog.text)
    assert await _rest(reader) < len(HUGE)
    writer.close()


async def _ask(port: int, route: str, request=None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Of a client that reads nothing by itself: its buffers are small."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    body = b"" if request is None else json.dumps(request).encode()
    method = "GET" if request is None else "POST"
    writer.write(f"{method} {route} HTTP/1.1\r\nHost: pod\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer


async def _rest(reader: asyncio.StreamReader) -> int:
    """Bytes until the connection ends."""
    received = 0
    async with asyncio.timeout(SECONDS):
        with suppress(ConnectionError):
            while piece := await reader.read(2**20):
                received += len(piece)
    return received


async def _ask_for_events(pod) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    body = json.dumps({"prompt": "hi", "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.ports.openai, limit=1024)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: pod\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


async def _cut(reader: asyncio.StreamReader, absent: bytes = b"[DONE]") -> None:
    """The connection ends, and not with the end of an answer."""
    with suppress(ConnectionError):
        async with asyncio.timeout(SECONDS):
            rest = await reader.read()
            assert b"\r\n0\r\n\r\n" not in rest
            assert absent not in rest
