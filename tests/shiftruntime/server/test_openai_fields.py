"""Fields of OpenAI's requests: what would change the answer is refused by name, the rest is read or ignored."""

from __future__ import annotations

import json

import pytest
from shiftruntime.server.openai import protocol, refused_fields
from shiftruntime.server.openai.errors import HttpError
from shiftruntime.server.openai.protocol import ChatRequest, CompletionRequest
from shiftruntime.server.openai.sampling import chat_options, completion_options
from shiftruntime.server.refusal import Refusal

from .openai_calls import USER

COMPLETIONS_ONLY = {"max_completion_tokens", "tools", "tool_choice", "top_logprobs"}


@pytest.mark.parametrize("name", sorted(refused_fields.REFUSED))
def test_every_field_that_would_change_the_answer_is_refused_by_name(name):
    kind = CompletionRequest if name in COMPLETIONS_ONLY else ChatRequest
    with pytest.raises(HttpError, match=rf"^{name}: .*; ") as caught:
        protocol.read(json.dumps({"messages": USER, "prompt": "x", name: {"any": 1}}).encode(), kind)
    assert (caught.value.status, caught.value.param, caught.value.reason) == (400, name, "Unsupported")


@pytest.mark.parametrize(
    "harmless",
    [{"detokenize": True}, {"return_token_ids": False}, {"suffix": ""}, {"length_penalty": 1.0}, {"bad_words": []}],
)
def test_a_default_that_is_written_out_is_no_request(harmless):
    assert protocol.read(json.dumps({"prompt": "x"} | harmless).encode(), CompletionRequest).prompt == "x"


@pytest.mark.parametrize("value", [{"detokenize": False}, {"length_penalty": 1.5}, {"prompt_logprobs": 0}])
def test_a_value_that_asks_for_something_is_refused(value):
    with pytest.raises(HttpError, match=next(iter(value))):
        protocol.read(json.dumps({"prompt": "x"} | value).encode(), CompletionRequest)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"guided_json": {"type": "object"}}, {"json": {"type": "object"}}),
        ({"guided_json": '{"type": "object"}'}, {"json": '{"type": "object"}'}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_json_object": True}, {"json_object": True}),
    ],
)
def test_guided_fields_are_structured_outputs(older, newer):
    both = [json.dumps({"prompt": "x"} | body).encode() for body in (older, {"structured_outputs": newer})]
    grammars = [completion_options(protocol.read(body, CompletionRequest)).grammar for body in both]
    assert grammars[0] == grammars[1] is not None
    with pytest.raises(HttpError, match="exclude each other"):
        protocol.read(json.dumps({"prompt": "x", "structured_outputs": newer} | older).encode(), CompletionRequest)


def test_two_guided_fields_are_one_too_many():
    body = protocol.read(b'{"prompt": "x", "guided_regex": "a", "guided_choice": ["c"]}', CompletionRequest)
    with pytest.raises(HttpError, match="structured_outputs has 2"):
        completion_options(body)


@pytest.mark.parametrize("n", [0, 33, 2**62])
def test_a_huge_n_is_refused_before_an_answer_with_room_for_it_is_made(n):
    with pytest.raises(Refusal, match=f"n {n} is outside 1..32"):
        chat_options(ChatRequest(messages=[], n=n), None)
    with pytest.raises(Refusal, match=f"n {n} is outside 1..32"):
        completion_options(CompletionRequest(prompt="x", n=n))


async def test_unknown_fields_are_ignored_and_named_once(client, caplog, monkeypatch):
    monkeypatch.setattr(protocol, "_seen_unknown", set())
    for _ in range(2):
        body = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "field_of_2031": None}
        await client.chat.completions.create(model="fake", messages=USER, extra_body=body)
    lines = [record.getMessage() for record in caplog.records if "ignores" in record.getMessage()]
    (line,) = lines
    assert "'metadata', 'service_tier', 'store'" in line
    assert "field_of_2031" not in line, "null is not given"


def test_names_of_unknown_fields_neither_forge_log_lines_nor_fill_the_memory(caplog, monkeypatch):
    monkeypatch.setattr(protocol, "_seen_unknown", set())
    protocol.read(json.dumps({"prompt": "x"} | {f"\nERROR {i}": 1 for i in range(1000)}).encode(), CompletionRequest)
    assert len(protocol._seen_unknown) == protocol.MAX_UNKNOWN_NAMES
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
