"""Frames between processes: whatever the bytes are, messages of the expected types or FrameError, in bounded memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import pytest
from helpers.failures.byte_targets import UNIONS, check_frames, frame, samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shiftcore.layout import Gear
from shiftruntime.config import ModelConfig
from shiftruntime.engine.messages import Abort, FromEngine, ToEngine
from shiftruntime.worker.frames import MAX_FRAME_BYTES, FrameBuffer, FrameError
from shiftruntime.worker.messages import FromRank, Opened, StepPlan, ToRank

FRAMES = [(name, frame) for name, those in samples().items() for frame in those]
CUTS = st.lists(st.integers(0, 1 << 16), max_size=4)
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Right frames, joined, with some bytes replaced, inserted or cut out."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from([f for _, f in FRAMES]), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        data[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@st.composite
def senseless(draw: st.DrawFn) -> bytes:
    """msgpack with the names of a message and its fields, and any values."""
    union = draw(st.sampled_from([*UNIONS.values()]))
    member = draw(st.sampled_from(union.__args__))
    names = st.sampled_from([*member.__struct_encode_fields__, "other"])
    leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
    leaves |= st.binary(max_size=5) | st.just("a" * 300)
    values = st.recursive(
        leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4)
    )
    body = {"type": member.__struct_config__.tag} | draw(st.dictionaries(names, values, max_size=8))
    return frame(msgspec.msgpack.encode(body))


@FUZZ
@given(mutated(), CUTS)
def test_damaged_frames_are_refused(data: bytes, cuts: list[int]) -> None:
    check_frames(data, cuts)


@FUZZ
@given(senseless(), CUTS)
def test_frames_of_senseless_values_are_refused(data: bytes, cuts: list[int]) -> None:
    check_frames(data, cuts)


@FUZZ
@given(st.binary(max_size=200), CUTS)
def test_any_bytes_are_refused(data: bytes, cuts: list[int]) -> None:
    check_frames(data, cuts)
    check_frames(frame(data), cuts)


@pytest.mark.parametrize(("name", "data"), FRAMES)
def test_what_is_right_is_understood_in_its_direction(name: str, data: bytes) -> None:
    (message,) = FrameBuffer[Any](UNIONS[name]).feed(data)
    assert isinstance(message, UNIONS[name])


def refused(union: Any, body: bytes) -> None:
    buffer: FrameBuffer[Any] = FrameBuffer(union)
    for _ in range(2):  # a second look at the same bytes ends the same way
        with pytest.raises(FrameError, match=f"a frame of {len(body)} bytes does not decode"):
            buffer.feed(frame(body))


def test_text_that_is_no_utf8_is_a_broken_frame() -> None:
    refused(ToEngine, msgspec.msgpack.encode(Abort("name")).replace(b"name", b"\xff\xfe\xff\xfe"))


def test_nesting_without_end_is_a_broken_frame() -> None:
    refused(ToRank, b"\x82\xa4type\xa8StepPlan\xa5other" + b"\x91" * 100_000)


def test_a_value_that_its_type_refuses_at_birth_is_a_broken_frame() -> None:
    config = ModelConfig("llama", 48, 2, 8, 4, 12, 96, 131, 64, 1e-6, 10000.0)
    raw = msgspec.to_builtins(Opened(config, "float32", 1))
    raw["config"]["head_dim"] = 3  # ModelConfig wants pairs
    refused(FromRank, msgspec.msgpack.encode(raw))


@pytest.mark.parametrize("claim", [MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_a_frame_that_claims_too_much_is_refused_before_it_is_there(claim: int) -> None:
    with pytest.raises(FrameError, match=f"a frame of {claim} bytes exceeds"):
        FrameBuffer[Any](FromEngine).feed(claim.to_bytes(4, "little"))


@pytest.mark.parametrize(
    "head", [b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_lengths_that_are_only_claimed_take_no_memory(head: bytes) -> None:
    body = msgspec.msgpack.encode({"type": "StepPlan", "step": 1, "gear": Gear(1, 1).name, "generation": 0})
    body = b"\x85" + body[1:] + b"\xa6chunks" + head
    tracemalloc.start()
    try:
        refused(ToRank, body)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_plan_is_understood_byte_by_byte() -> None:
    plan = StepPlan(1, "tp1", 0)
    buffer: FrameBuffer[Any] = FrameBuffer(ToRank)
    data = frame(msgspec.msgpack.encode(plan))
    assert [m for i in range(len(data)) for m in buffer.feed(data[i : i + 1])] == [plan]
