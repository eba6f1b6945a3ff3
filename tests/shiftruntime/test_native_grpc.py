"""What a native client asks for acts in real ranks: over gRPC, through front end, engine and both gears."""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from helpers.engines import engine_options
from helpers.tiny_models import save_llama
from shiftprotos.v1 import inference_pb2 as pb
from shiftprotos.v1 import inference_pb2_grpc
from shiftruntime.engine.client import EngineClient
from shiftruntime.server import text_source
from shiftruntime.server.app import serve
from shiftruntime.server.listeners import Ports
from shiftruntime.server.options import ServeOptions

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]

SECONDS = 60.0
STREAMS = int(os.environ.get("SHIFT_CANCELLED_STREAMS", "18"))
PROMPT = list(range(5, 45))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_llama(folder, max_position_embeddings=256)
    return folder


@asynccontextmanager
async def native(model: Path) -> AsyncIterator[inference_pb2_grpc.InferenceStub]:
    ports: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    options = ServeOptions(
        engine_options(model), "tiny", port=0, control_port=0, ops_port=0, openai_port=None, drain_seconds=5.0
    )
    pod = asyncio.create_task(serve(options, EngineClient, text_source.load, ports.set_result))
    try:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{(await asyncio.wait_for(ports, SECONDS)).inference}"
        ) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            await until_ready(stub)
            yield stub
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(pod, SECONDS) == 0


async def until_ready(stub) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await collect(stub, max_tokens=1)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)


async def collect(stub, **sampling: Any) -> tuple[list[pb.GenerateResponse], dict[str, str]]:
    """(messages, trailing metadata) of one greedy request, unless told otherwise."""
    params = pb.SamplingParams(**({"temperature": 0.0, "ignore_eos": True} | sampling))
    call = stub.Generate(pb.GenerateRequest(tokens=pb.TokenIds(ids=PROMPT), sampling=params), timeout=SECONDS)
    return [response async for response in call], dict(await call.trailing_metadata())


def tokens(responses: list[pb.GenerateResponse], index: int = 0) -> list[int]:
    return [token for response in responses if response.index == index for token in response.token_ids]


async def test_what_a_client_asks_for_acts_in_the_ranks(llama):
    async with native(llama) as stub:
        plain, trailing = await collect(stub, max_tokens=8)
        greedy = tokens(plain)
        assert set(trailing) >= {"shift-gear-share", "shift-queue-ms", "shift-ttft-ms", "shift-cached-tokens"}
        shares = [float(share.partition("=")[2]) for share in trailing["shift-gear-share"].split(",")]
        assert math.isclose(sum(shares), 1.0, abs_tol=1e-3)

        repeated, trailing = await collect(stub, max_tokens=8)
        assert tokens(repeated) == greedy
        assert int(trailing["shift-cached-tokens"]) == repeated[-1].usage.cached_tokens > 0

        banned, _ = await collect(stub, max_tokens=8, logit_bias=dict.fromkeys(greedy, -100.0))
        assert set(tokens(banned)).isdisjoint(greedy)

        scored, _ = await collect(stub, max_tokens=4, top_logprobs=3, prompt_logprobs=True)
        alternatives = [top for response in scored for top in response.top_logprobs]
        assert [top.token_ids[0] for top in alternatives] == tokens(scored)  # greedy: the likeliest is taken
        assert all(len(top.token_ids) == 3 for top in alternatives)
        assert len([score for response in scored for score in response.prompt_logprobs]) == len(PROMPT) - 1

        several, _ = await collect(stub, max_tokens=6, n=3, temperature=1.0, seed=5)
        assert len({tuple(tokens(several, index)) for index in range(3)}) > 1
        again, _ = await collect(stub, max_tokens=6, n=3, temperature=1.0, seed=5)
        assert [tokens(again, index) for index in range(3)] == [tokens(several, index) for index in range(3)]

        only_likeliest, _ = await collect(stub, max_tokens=8, temperature=1.0, top_k=1)
        assert tokens(only_likeliest) == greedy

        digits, _ = await collect(stub, max_tokens=8, regex="[0-9]{3}", ignore_eos=False)
        assert re.fullmatch("[0-9]{3}", "".join(response.text for response in digits))


async def test_cancelled_streams_leave_nothing_in_the_ranks(llama):
    """By the client's leaving, by Abort and by deadline, at any moment; neighbours keep their tokens."""
    rng = random.Random(7)
    async with native(llama) as stub:
        alone = tokens((await collect(stub, max_tokens=40))[0])
        for number in range(STREAMS):
            neighbour = asyncio.create_task(collect(stub, max_tokens=40))
            prompt = pb.TokenIds(ids=[rng.randrange(3, 130) for _ in range(rng.choice((8, 180)))])
            params = pb.SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=60)
            request = pb.GenerateRequest(request_id="victim", tokens=prompt, sampling=params)
            await _end(stub, request, ("cancel", "abort", "deadline")[number % 3], rng.uniform(0.0, 0.2))
            assert tokens((await neighbour)[0]) == alone
        async with asyncio.timeout(SECONDS):
            while True:
                load = (await stub.GetLoads(pb.GetLoadsRequest())).load
                if not load.running_requests + load.waiting_requests and load.kv_blocks_free == load.kv_blocks_total:
                    break
                await asyncio.sleep(0.05)


async def _end(stub, request: pb.GenerateRequest, way: str, seconds: float) -> None:
    """All have one id: a stream that is gone must not be in the way of the next."""
    if way == "deadline":
        request.timeout_seconds = max(seconds, 0.01)
    call = stub.Generate(request, timeout=SECONDS)
    reading = asyncio.create_task(_read(call))
    if way != "deadline":
        await asyncio.sleep(seconds)
    if way == "cancel":
        call.cancel()
    if way == "abort":
        await stub.Abort(pb.AbortRequest(request_id="victim"), timeout=SECONDS)
    assert await asyncio.wait_for(reading, SECONDS) in {
        "cancel": {"OK", "CANCELLED"}, "abort": {"OK", "CANCELLED"}, "deadline": {"OK", "DEADLINE_EXCEEDED"},
    }[way]  # fmt: skip
    async with asyncio.timeout(SECONDS):  # a call that was cancelled here ends there a little later
        while way == "cancel":
            try:
                probe = pb.GenerateRequest(request_id="victim", text="x", sampling=pb.SamplingParams(max_tokens=1))
                assert [response async for response in stub.Generate(probe, timeout=SECONDS)]
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
                await asyncio.sleep(0.01)


async def _read(call) -> str:
    """How it ended; one that was accepted ends once."""
    finished = 0
    try:
        async for response in call:
            finished += response.finish_reason != pb.FINISH_REASON_UNSPECIFIED
    except asyncio.CancelledError:
        return "CANCELLED"
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    assert finished == 1
    return "OK"
