"""Bytes that a client may send over HTTP or KServe: admitted as the engine understands them, or refused by type."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.failures.route_targets import (
    TEMPLATES,
    TemplateTarget,
    check_kserve,
    check_openai,
    kserve_samples,
    openai_samples,
    template_samples,
)
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROUTES = st.integers(0, 4 * len(TEMPLATES) - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
BODIES = [(sample[0], json.loads(sample[1:])) for sample in openai_samples()]
NAMES = sorted({name for _, body in BODIES for name in body} | {"best_of", "echo", "guided_json", "top_logprobs"})


@FUZZ
@given(st.sampled_from(BODIES), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3))
def test_any_field_of_an_openai_body_is_admitted_or_refused(sample: tuple[int, Any], changes: dict[str, Any]) -> None:
    route, body = sample
    event("admitted" if check_openai(bytes([route]) + json.dumps(body | changes).encode()) else "refused")


@FUZZ
@given(ROUTES, st.binary(max_size=100))
def test_any_bytes_of_an_openai_body_are_refused_or_harmless(route: int, data: bytes) -> None:
    check_openai(bytes([route]) + data)


@FUZZ
@given(st.sampled_from([*openai_samples(), *kserve_samples()]), st.data())
def test_any_damage_to_a_body_or_message_is_refused_or_harmless(sample: bytes, data: st.DataObject) -> None:
    raw = bytearray(sample)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        raw[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    check_openai(bytes(raw))
    check_kserve(bytes(raw))


def test_a_body_with_a_name_that_is_no_utf8_is_refused() -> None:
    assert not check_openai(b'\0{"prompt": "hi", "\x80": 1}')


@pytest.mark.parametrize("sample", openai_samples())
def test_the_bodies_that_a_mutation_begins_with_are_admitted(sample: bytes) -> None:
    assert check_openai(sample)


@pytest.mark.parametrize("sample", kserve_samples())
def test_the_messages_that_a_mutation_begins_with_are_admitted(sample: bytes) -> None:
    assert check_kserve(sample)


def test_a_template_renders_or_is_refused() -> None:
    target = TemplateTarget()
    assert all(target(sample) for sample in template_samples())
    for refused in (b"{% for", b"{{ raise_exception('no') }}", b"{% for i in range(99999) %}" * 3, b"\xff"):
        assert not target(refused + b"\0[]")
