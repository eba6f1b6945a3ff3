"""What any bytes may do: be understood, or be refused by the one typed error. For hypothesis and atheris alike."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from google.protobuf.message import DecodeError
from shiftcore.layout import Gear
from shiftcore.policy import Mode, Policy
from shiftprotos.v1 import inference_pb2 as pb
from shiftruntime.config import ModelConfig
from shiftruntime.engine import messages as engine
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.start_message import Start
from shiftruntime.server.generation_wire import generation_from_wire
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.request import Generation
from shiftruntime.server.validation import Limits, check_generation, check_prompt, resolve_sampling
from shiftruntime.worker import messages as worker
from shiftruntime.worker.frames import FrameBuffer, FrameError, pack

# Everything that a process decodes from another one.
UNIONS: dict[str, Any] = {
    "front end to engine": engine.ToEngine | Start,
    "engine to front end": engine.FromEngine,
    "engine to rank": worker.ToRank,
    "rank to engine": worker.FromRank,
}
LIMITS = Limits("tiny", vocab_size=131, max_prompt_tokens=63, max_model_len=64, eos_ids=(1,))
MAX_STATUS_BYTES = 4096  # a status travels in headers
REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}


def samples() -> dict[str, list[bytes]]:
    """Frames that are right, per direction: what a mutation begins with."""
    config = ModelConfig("llama", 48, 2, 8, 4, 12, 96, 131, 64, 1e-6, 10000.0)
    sampling = engine.Sampling(0.7, 0.9, 7, 4, (1,), logit_bias=((3, 0.5),), grammar=engine.Grammar("regex", "a+"))
    policy = Policy(Mode.AUTO, 8)
    chunk = worker.ChunkPlan((5, 6), 0, (0,), targets=(6, 7))
    messages: dict[str, list[msgspec.Struct]] = {
        "front end to engine": [
            engine.Submit("a", (5, 6), sampling, tenant="t"), engine.Abort("a"), engine.Call(1, "set_policy", policy),
            engine.Shutdown(), Start(EngineOptions("model", 2, Gear(2, 1))),
        ],
        "engine to front end": [
            engine.Output("a", (5,), (-0.5,), engine.Finish.STOP), engine.Fatal("RankFailed", "rank 1 ended"),
            engine.Refused("a", "QueueFull", "full"), engine.Admitted("a"), engine.PhaseUpdate("load", 1.0, 5, 10),
            engine.Ready("llama", "float32", 64, 131, 63, ("tp2", "sp2")), engine.Answer(1, error="no"),
        ],
        "engine to rank": [
            worker.Open("model", "float32", False), worker.Load(100), worker.AllocateKv(5),
            worker.Attach(config, "float32", False, 100, 4), worker.StepPlan(1, "sp2", 3, (chunk,)),
        ],
        "rank to engine": [
            worker.Hello(1), worker.Opened(config, "float32", 100), worker.Loaded(), worker.LoadProgress(1, 2),
            worker.Done(1, 3, (5,)), worker.Failed("RankFailed", "no"), worker.Attached(512), worker.Allocated(),
        ],
    }  # fmt: skip
    return {name: [pack(message) for message in those] for name, those in messages.items()}


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def check_frames(data: bytes, cuts: Sequence[int] = ()) -> None:
    """Fed to every direction, in pieces: messages of its union or FrameError, and the same however it is cut."""
    for union in UNIONS.values():
        whole = _feed(union, [data])
        assert all(isinstance(message, union) for message in whole[0])
        ends = [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        assert repr(_feed(union, pieces)) == repr(whole)  # a NaN differs from itself


def _feed(union: Any, pieces: list[bytes]) -> tuple[list[Any], str]:
    """(messages before the first error, the error)."""
    buffer: FrameBuffer[Any] = FrameBuffer(union)
    messages: list[Any] = []
    for piece in pieces:
        try:
            messages += buffer.feed(piece)
        except FrameError as error:
            return [], str(error)
    return messages, ""


def check_request(data: bytes) -> bool:
    """A request from its bytes to what the engine gets; whether it would be admitted. Anything else is Refusal."""
    try:
        request = pb.GenerateRequest.FromString(data)
    except DecodeError:  # grpc answers INTERNAL by itself
        return False
    return is_admitted(lambda: generation_from_wire(request))


def is_admitted(read: Callable[[], Generation]) -> bool:
    """Whether what a route read goes on to the engine, which must understand it; anything else is Refusal."""
    try:
        generation = read()
        check_generation(generation, LIMITS)
        asked = generation.prompt
        prompt = (5,) * min(-(-len(asked) // 8), 100) if isinstance(asked, str) else asked  # 8 characters a token
        check_prompt(prompt or (), LIMITS)
        sampling = resolve_sampling(generation.options, len(prompt or ()), LIMITS, 7)
    except Refusal as refusal:
        check_refusal(refusal)
        return False
    submit = engine.Submit(
        generation.request_id,
        prompt or (),
        sampling,
        generation.tenant,
        generation.priority,
        generation.timeout_seconds,
    )
    assert FrameBuffer[Any](engine.ToEngine).feed(pack(submit)) == [submit], "the engine would not understand it"
    return True


def check_refusal(refusal: Refusal) -> None:
    """Raises ValueError for one that no client can use."""
    if refusal.code.name not in REFUSALS or len(refusal.message.encode()) > MAX_STATUS_BYTES:
        raise ValueError(f"a refusal that no client can use: {refusal.code}, {refusal.message[:200]}") from refusal
