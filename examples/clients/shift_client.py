"""A small gRPC client: streams one completion, or sends a burst of long prompts beside running decodes.

    python3 shift_client.py --target dns:///gemma-headless:9000 generate "The capital of France is"
    python3 shift_client.py --target dns:///gemma-headless:9000 burst --prompts 24 --seconds 60

Needs grpcio and shift-protos. The target is the headless Service: with round_robin each call may go to another pod,
while a ClusterIP would pin the whole HTTP/2 connection to one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
from shiftprotos.v1 import inference_pb2, inference_pb2_grpc

CALL_SECONDS = 180.0
RETRY_SECONDS = 0.5
# A new channel looks the pods up anew; an old one keeps those it found.
CHANNEL_SECONDS = 5.0
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


@dataclass
class Latencies:
    """Seconds, of one kind of request."""

    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    # Of requests that no pod had accepted: another pod takes them.
    refused: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, object]:
        return {
            "outcomes": dict(self.outcomes),
            "refused": dict(self.refused),
            "ttft_p50_ms": percentile(self.ttft, 50),
            "ttft_p95_ms": percentile(self.ttft, 95),
            "tpot_p50_ms": percentile(self.tpot, 50),
            "tpot_p95_ms": percentile(self.tpot, 95),
        }


class Client:
    def __init__(self, target: str) -> None:
        self._target = target
        self._channel: grpc.aio.Channel | None = None
        self._made = 0.0
        self._old: list[grpc.aio.Channel] = []

    def stub(self) -> inference_pb2_grpc.InferenceStub:
        if self._channel is None or time.monotonic() - self._made > CHANNEL_SECONDS:
            if self._channel is not None:
                self._old.append(self._channel)
            self._made = time.monotonic()
            self._channel = grpc.aio.insecure_channel(
                self._target,
                options=[("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1)],
            )
        return inference_pb2_grpc.InferenceStub(self._channel)

    async def close(self) -> None:
        for channel in [*self._old, *([self._channel] if self._channel else [])]:
            await channel.close()

    async def run(self, prompt: str, max_tokens: int, into: Latencies, show: bool = False) -> int:
        """One completion; returns the number of tokens. The outcome is counted, never raised."""
        request = inference_pb2.GenerateRequest(
            text=prompt,
            sampling=inference_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
        )
        started = last = time.monotonic()
        first: float | None = None
        tokens = 0
        accepted = False
        try:
            call = self.stub().Generate(request, timeout=CALL_SECONDS)
            await call.initial_metadata()
            accepted = True  # what a pod has accepted it ends, one way or the other
            async for part in call:
                if part.token_ids:
                    last = time.monotonic()
                    first = first or last
                    tokens += len(part.token_ids)
                if show:
                    print(part.text, end="", flush=True)
        except grpc.aio.AioRpcError as error:
            (into.outcomes if accepted else into.refused)[error.code().name] += 1
            await asyncio.sleep(RETRY_SECONDS)
            return tokens
        into.outcomes["OK"] += 1
        if first is not None:
            into.ttft.append(first - started)
            if tokens > 1:
                into.tpot.append((last - first) / (tokens - 1))
        return tokens


async def generate(client: Client, arguments: argparse.Namespace) -> int:
    latencies = Latencies()
    print(arguments.prompt, end="", flush=True)
    tokens = await client.run(arguments.prompt, arguments.max_tokens, latencies, show=True)
    print()
    print(json.dumps({"tokens": tokens, **latencies.summary()}))
    return 0 if latencies.outcomes["OK"] else 1


async def burst(client: Client, arguments: argparse.Namespace) -> int:
    """Closed loop: as many prompts and decodes in flight as asked, until the time is over or stdin ends."""
    stop = asyncio.Event()
    if arguments.until_eof:
        stop_at_eof(stop)
    decodes, prompts = Latencies(), Latencies()
    deadline = time.monotonic() + arguments.seconds
    rng = random.Random(7)

    async def loop(prompt_words: int, max_tokens: int, into: Latencies) -> None:
        while time.monotonic() < deadline and not stop.is_set():
            await client.run(" ".join(rng.choices(WORDS, k=prompt_words)), max_tokens, into)

    async def progress() -> None:
        while True:
            await asyncio.sleep(2.0)
            done = {"decodes": decodes.outcomes["OK"], "prompts": prompts.outcomes["OK"]}
            print(json.dumps({"progress": done}), flush=True)

    ticker = asyncio.create_task(progress())
    await asyncio.gather(
        *(loop(8, arguments.decode_tokens, decodes) for _ in range(arguments.decodes)),
        *(loop(arguments.prompt_tokens, 4, prompts) for _ in range(arguments.prompts)),
    )
    ticker.cancel()
    print(json.dumps({"decodes": decodes.summary(), "prompts": prompts.summary()}), flush=True)
    return 0


def stop_at_eof(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def read() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=read, daemon=True).start()


def percentile(values: list[float], percent: int) -> float | None:
    """In milliseconds; None without values."""
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return round(cuts[percent - 1] * 1e3, 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="for example dns:///gemma-headless.default.svc:9000")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("generate", help="stream one completion")
    one.add_argument("prompt")
    one.add_argument("--max-tokens", type=int, default=32)
    one.set_defaults(run=generate)
    many = commands.add_parser("burst", help="long prompts beside running decodes")
    many.add_argument("--decodes", type=int, default=4, help="streams of many tokens at any time")
    many.add_argument("--decode-tokens", type=int, default=48)
    many.add_argument("--prompts", type=int, default=24, help="long prompts in flight at any time")
    many.add_argument("--prompt-tokens", type=int, default=400, help="about this many tokens each")
    many.add_argument("--seconds", type=float, default=60.0)
    many.add_argument("--until-eof", action="store_true", help="end early when stdin is closed")
    many.set_defaults(run=burst)
    return parser.parse_args()


async def main() -> int:
    arguments = parse()
    client = Client(arguments.target)
    try:
        return int(await arguments.run(client, arguments))
    finally:
        await client.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
