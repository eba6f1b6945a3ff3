"""A pod with a fake engine: real gRPC and HTTP on loopback ports, token streams that a test can hold and break."""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import grpc
import openai
import pytest
from shiftcore.costs import CostPoint
from shiftcore.layout import Gear, allowed_gears
from shiftcore.policy import Policy, PolicyError, StaleGenerationError, accept
from shiftprotos.v1 import control_pb2_grpc, inference_pb2_grpc
from shiftruntime.engine.client import EngineFailed, PolicyRefused, RequestRefused
from shiftruntime.engine.messages import (
    EngineState,
    Finish,
    GearState,
    Journey,
    LoadState,
    Output,
    PhaseUpdate,
    Ready,
    SelfCheckState,
    Submit,
    TopLogprobs,
)
from shiftruntime.engine.options import EngineOptions
from shiftruntime.models.generation_config import GenerationDefaults
from shiftruntime.models.tokenizer import TooManyTokens
from shiftruntime.server.app import serve
from shiftruntime.server.chat.template import ChatTemplates, TemplateSources
from shiftruntime.server.environment import Environment
from shiftruntime.server.listeners import Ports
from shiftruntime.server.options import ServeOptions

from .openai_calls import client_of

EOS = 0
VOCAB_SIZE = 300
MAX_MODEL_LEN = 64
WAIT_SECONDS = 10.0
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}"
JOURNEY = Journey(queue_seconds=0.25, cached_tokens=16, gear_tokens={"tp2": 3, "sp2": 9})


@cache
def _chat_templates() -> ChatTemplates:
    return ChatTemplates(TemplateSources({"default": CHAT_TEMPLATE}, {}, "fake.json"))


class FakeText:
    """One token per byte of UTF-8; 0 is end-of-sequence and has no text."""

    eos_ids = (EOS,)
    defaults = GenerationDefaults()
    longest_token_bytes = None

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 < token_id < 256 else b""

    def encode(self, text: str, add_special_tokens: bool = True, at_most: int | None = None) -> list[int]:
        ids = list(text.encode())  # no special token
        if at_most is not None and len(ids) > at_most:
            raise TooManyTokens(len(ids))
        return ids

    def decoder(self, visible_special_ids: frozenset[int] = frozenset()) -> FakeDecoder:
        return FakeDecoder()

    @property
    def chat(self) -> ChatTemplates:
        return _chat_templates()

    chat_error = ""
    special_ids: Mapping[str, int] = {"</s>": EOS}

    def token_piece(self, token_id: int) -> bytes:
        return b"</s>" if token_id == EOS else self.token_bytes(token_id)


class FakeDecoder:
    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(bytes([token]) if 0 < token < 256 else b"")

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


@dataclass
class Running:
    submit: Submit
    aborted: bool = False


@dataclass
class FakeEngine:
    """Answers with ``reply`` one token at a time while ``flow`` is set. Has the methods of EngineClient."""

    options: EngineOptions
    reply: bytes = b"hello world"
    tokens_per_output: int = 1
    refusal: RequestRefused | None = None
    start_failure: EngineFailed | None = None
    submitted: list[Submit] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)
    dead: EngineFailed | None = None
    draining: bool = False
    stopped: bool = False
    deaf: bool = False  # aborts and state calls are not answered any more

    def __post_init__(self) -> None:
        self.flow = asyncio.Event()
        self.flow.set()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.failed: asyncio.Future[EngineFailed] = asyncio.get_running_loop().create_future()
        self.policy = self.options.policy
        self.applied = self.policy.generation

    async def start(self, on_phase: Callable[[PhaseUpdate], None], model: str | None = None) -> Ready:
        on_phase(PhaseUpdate("load", 0.5, 2**20, 2**21))
        await self.may_start.wait()
        if self.start_failure is not None:
            raise self.start_failure
        on_phase(PhaseUpdate("load", 1.5, 2**21, 2**21, done=True))
        gears = tuple(gear.name for gear in allowed_gears(self.options.base_gear))
        return Ready("fake", "float32", MAX_MODEL_LEN, VOCAB_SIZE, MAX_MODEL_LEN - 1, gears)

    async def submit(self, request: Submit) -> AsyncIterator[Output]:
        self.submitted.append(request)
        await asyncio.sleep(0)
        if self.dead is not None:
            raise self.dead
        if self.refusal is not None:
            raise self.refusal
        if self.draining:
            raise RequestRefused("Draining", "the engine drains")
        self.running[request.request_id] = Running(request)
        return self._outputs(self.running[request.request_id])

    async def _outputs(self, running: Running) -> AsyncIterator[Output]:
        request = running.submit
        tokens = list(self.reply)[: request.sampling.max_tokens]
        ends_itself = len(self.reply) < request.sampling.max_tokens
        tokens += [EOS] if ends_itself else []
        try:
            for start in range(0, len(tokens), self.tokens_per_output):
                await self._step(running)
                if running.aborted:
                    yield Output(request.request_id, (), finish=Finish.ABORT, journey=JOURNEY)
                    return
                new = tuple(tokens[start : start + self.tokens_per_output])
                last = start + len(new) == len(tokens)
                finish = (Finish.STOP if ends_itself else Finish.LENGTH) if last else None
                logprobs = tuple(-0.5 for _ in new) if request.sampling.logprobs else ()
                yield Output(
                    request.request_id,
                    new,
                    logprobs,
                    finish,
                    top_logprobs=_alternatives(request, new),
                    prompt_logprobs=tuple(-1.5 for _ in request.prompt[1:]) if _scores_prompt(request, start) else (),
                    journey=JOURNEY if finish else None,
                )
        finally:
            self.running.pop(request.request_id, None)

    async def _step(self, running: Running) -> None:
        await asyncio.sleep(0)
        while not self.flow.is_set() and self.dead is None and not (running.aborted and not self.deaf):  # noqa: ASYNC110 - any of three
            await asyncio.sleep(0.002)
        if self.dead is not None:
            raise self.dead

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        if request_id in self.running:
            self.running[request_id].aborted = True

    def die(self, message: str = "rank 1 was killed by signal 9") -> None:
        self.dead = EngineFailed("RankFailed", message)
        self.failed.set_result(self.dead)

    async def state(self) -> EngineState:
        if self.dead is not None:
            raise self.dead
        gears = tuple(
            GearState(
                gear.name, gear.sequence, gear.tensor, (CostPoint(16, 0.01, 0.001, 5),), 3, 48, 0.03, 1600.0,
                (0, 1, 0, 2, *[0] * 11),
            )
            for gear in allowed_gears(self.options.base_gear)
        )  # fmt: skip
        load = LoadState(len(self.running), 0, 0, 100, 90, 0.0, 12.5, 0.5, 64, 0.1, 0.02, 5.0, 7.5, 30, 64, 48, 2,
                         0.05, 0.09, 0.11, 0.01, 0.015, 0.03)  # fmt: skip
        return EngineState(
            policy=self.policy,
            generation_applied=self.applied,
            gears=gears,
            base_gear=self.options.base_gear.name,
            crossover_tokens=None,
            crossover_reason="NoCrossover",
            crossover_message="tp2 is as cheap as sp2",
            threshold_tokens=self.policy.threshold_tokens or 256,
            threshold_source="Policy" if self.policy.threshold_tokens else "Default",
            shifts=4,
            load=load,
            self_check=SelfCheckState(True, 1e-6, 1e-4, tuple(gear.name for gear in gears), "gears agree"),
            draining=self.draining,
        )

    async def set_policy(self, policy: Policy) -> EngineState:
        try:
            self.policy = accept(self.policy, policy, allowed_gears(self.options.base_gear))
        except StaleGenerationError as error:
            raise PolicyRefused("StaleGeneration", str(error)) from error
        except PolicyError as error:
            raise PolicyRefused("InvalidPolicy", str(error)) from error
        self.applied = policy.generation
        return await self.state()

    async def calibrate(self) -> EngineState:
        if self.running:
            raise PolicyRefused("Busy", "1 request runs")
        return await self.state()

    async def drain(self) -> EngineState:
        self.draining = True
        return await self.state()

    async def stop(self, timeout_seconds: float) -> None:
        self.stopped = True


def _alternatives(request: Submit, tokens: tuple[int, ...]) -> tuple[TopLogprobs, ...]:
    """The token itself and the byte after it, as many as asked for."""
    count = request.sampling.top_logprobs
    both = [TopLogprobs((token, token + 1)[:count], (-0.5, -1.0)[:count]) for token in tokens]
    return tuple(both) if count else ()


def _scores_prompt(request: Submit, start: int) -> bool:
    return request.sampling.prompt_logprobs and start == 0


@dataclass
class RunningPod:
    """A pod in this process."""

    engine: FakeEngine
    ports: Ports
    task: asyncio.Task[int]
    channel: grpc.aio.Channel
    control_channel: grpc.aio.Channel
    termination_log: Path

    @property
    def inference(self) -> inference_pb2_grpc.InferenceStub:
        return inference_pb2_grpc.InferenceStub(self.channel)

    @property
    def control(self) -> control_pb2_grpc.ControlStub:
        return control_pb2_grpc.ControlStub(self.control_channel)

    def terminate(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    async def exit_code(self) -> int:
        return await asyncio.wait_for(asyncio.shield(self.task), WAIT_SECONDS)

    async def http(self, path: str, method: str = "GET") -> tuple[int, str]:
        return await http(self.ports.ops, path, method)

    async def until_ready(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while (await self.http("/readyz"))[0] != 200:  # noqa: ASYNC110 - seen from outside only
                await asyncio.sleep(0.01)


async def http(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """(status, body) of one plain HTTP request."""
    async with asyncio.timeout(WAIT_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: pod\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    return int(head.split(" ")[1]), body


@pytest.fixture
def serve_options(tmp_path: Path) -> ServeOptions:
    return ServeOptions(
        engine=EngineOptions(model="fake.gguf", ranks=2, base_gear=Gear(2, 1)),
        served_name="fake",
        port=0,
        control_port=0,
        ops_port=0,
        openai_port=0,
        drain_seconds=5.0,
        environment=Environment(termination_log=tmp_path / "termination-log"),
    )


PodStarter = Callable[..., Coroutine[Any, Any, "RunningPod"]]


@asynccontextmanager
async def running_pod(options: ServeOptions, configure: Callable[[FakeEngine], None]) -> AsyncIterator[RunningPod]:
    ports: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    engines: list[FakeEngine] = []

    def make_engine(engine_options: EngineOptions) -> Any:
        engines.append(FakeEngine(engine_options))
        configure(engines[0])
        return engines[0]

    task = asyncio.create_task(serve(options, make_engine, lambda model: FakeText(), ports.set_result))
    bound = await asyncio.wait_for(ports, WAIT_SECONDS)
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{bound.inference}") as channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{bound.control}") as control_channel,
    ):
        log = options.environment.termination_log
        assert log is not None, "every pod of a test writes one"
        yield RunningPod(engines[0], bound, task, channel, control_channel, log)
    if not task.done():
        engines[0].flow.set()
        os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, WAIT_SECONDS)


@pytest.fixture
async def start_pod(serve_options: ServeOptions) -> AsyncIterator[PodStarter]:
    """Start a pod: ``await start_pod(configure=…, drain_seconds=…)``; ended after the test."""
    entered = []

    async def start(
        configure: Callable[[FakeEngine], None] = lambda engine: None, ready: bool = True, **changes: Any
    ) -> RunningPod:
        context = running_pod(replace(serve_options, **changes), configure)
        pod = await context.__aenter__()
        entered.append(context)
        if ready:
            await pod.until_ready()
        return pod

    yield start
    for context in entered:
        await context.__aexit__(None, None, None)


@pytest.fixture
async def pod(start_pod: PodStarter) -> RunningPod:
    return await start_pod()


@pytest.fixture
async def client(pod: RunningPod) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(pod) as made:
        yield made


@pytest.fixture
def fake_engine_class() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture
def fake_text() -> FakeText:
    return FakeText()


class ChatPodStarter(Protocol):
    async def __call__(self, template: str, reply: bytes) -> RunningPod: ...


@pytest.fixture
def chat_pod(start_pod: PodStarter, monkeypatch: pytest.MonkeyPatch, fake_text: FakeText) -> ChatPodStarter:
    """Start a pod whose model has this chat template, gives this reply and has room for a prompt."""

    async def start(template: str, reply: bytes) -> RunningPod:
        made = Ready("fake", "float32", 8192, 300, 8191, ("tp2", "sp2"))

        def configure(engine: FakeEngine) -> None:
            start_engine = engine.start

            async def started(on_phase: Any, model: str | None = None) -> Ready:
                await start_engine(on_phase)
                return made

            engine.reply, engine.start = reply, started  # type: ignore[method-assign]

        pod = await start_pod(configure=configure)
        sources = TemplateSources({"default": template}, {"bos_token": "<s>", "eos_token": "</s>"}, "t.json")
        monkeypatch.setattr(type(fake_text), "chat", ChatTemplates(sources))
        return pod

    return start
