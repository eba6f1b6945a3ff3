"""Every parameter of a request through a real engine with two ranks, against Hugging Face and plain arithmetic."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
import torch
from helpers.engines import engine_options, generate, running_engine, submit
from shiftruntime.engine.client import EngineClient, RequestRefused
from shiftruntime.engine.messages import Finish, Grammar, Output, Submit
from shiftruntime.models.tokenizer import load_tokenizer
from torch import Tensor

from .conftest import TinyLlama

pytestmark = [pytest.mark.ranks, pytest.mark.asyncio(loop_scope="module")]

EOS = 1
PROMPT = random.Random(7).choices(range(3, 131), k=70)  # three chunks of at most 32 tokens
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["ab", "c"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "n"],
    "additionalProperties": False,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(llama: TinyLlama) -> AsyncIterator[EngineClient]:
    """With so few blocks that four long requests cannot all run."""
    options = engine_options(llama.path, max_model_len=128, kv_memory_bytes=40 * 1536)
    async with running_engine(options) as client:
        yield client


def next_logits(llama: TinyLlama, tokens: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return llama.oracle(torch.tensor([tokens])).logits[0, -1].double()


async def outputs(engine: EngineClient, request: Submit) -> list[Output]:
    return [output async for output in await engine.submit(request)]


async def test_edits_of_logits_act_in_their_order(engine: EngineClient, llama: TinyLlama) -> None:
    prompt, bias, min_tokens = PROMPT[:20], {40: 2.0, 41: -3.0, 42: 1.5}, 4
    first = int(next_logits(llama, prompt).argmax())  # what would come first is a stop token
    tokens: list[int] = []
    for _ in range(12):
        logits = next_logits(llama, [*prompt, *tokens])
        if len(tokens) < min_tokens:
            logits[[first, EOS]] = float("-inf")
        for token, value in bias.items():
            logits[token] += value
        for token in {*prompt, *tokens}:
            logits[token] *= 1.3 if logits[token] < 0 else 1 / 1.3
        for token, count in Counter(tokens).items():
            logits[token] -= 0.4 * count + 0.7
        tokens.append(int(logits.argmax()))
        if tokens[-1] in (first, EOS):
            break
    request = submit(
        "edits", prompt, 12, logit_bias=tuple(bias.items()), min_tokens=min_tokens, stop_token_ids=(first, EOS),
        repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.7,
    )  # fmt: skip
    assert await generate(engine, request) == tokens
    assert len(tokens) > min_tokens


async def test_cuts_leave_what_they_should(engine: EngineClient, llama: TinyLlama) -> None:
    """At a high temperature everything would come; each cut leaves the likeliest token only."""
    expected = [int(next_logits(llama, PROMPT[:9]).argmax())]
    for cut in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}):
        assert await generate(engine, submit(str(cut), PROMPT[:9], 1, temperature=50.0, seed=5, **cut)) == expected
    drawn = [await generate(engine, submit(f"seed-{i}", PROMPT[:9], 1, temperature=50.0, seed=i)) for i in range(12)]
    assert len({token for (token,) in drawn}) > 6


async def test_alternatives_and_prompt_logprobs_are_those_of_the_model(engine: EngineClient, llama: TinyLlama) -> None:
    wanted = {"temperature": 3.0, "seed": 4, "repetition_penalty": 1.8, "prompt_logprobs": True}
    await generate(engine, submit("fills the cache", PROMPT, 1))
    found = await outputs(engine, submit("scored", PROMPT, 6, logprobs=True, top_logprobs=5, **wanted))
    tokens = [token for output in found for token in output.token_ids]
    with torch.no_grad():
        expected = llama.oracle(torch.tensor([[*PROMPT, *tokens]])).logits[0].double().log_softmax(-1)
    scores = [score for output in found for score in output.prompt_logprobs]
    assert [len(output.prompt_logprobs) for output in found] == [32, 32, 5, *[0] * 6], "in pieces, before the tokens"
    every = torch.tensor([*PROMPT, *tokens])
    torch.testing.assert_close(
        torch.tensor(scores, dtype=torch.float64),
        expected[: len(PROMPT) - 1].gather(1, every[1 : len(PROMPT), None])[:, 0],
        atol=1e-4, rtol=0,
    )  # fmt: skip
    for i, output in enumerate(output for output in found if output.token_ids):
        row = expected[len(PROMPT) - 1 + i]
        (top,) = output.top_logprobs
        assert list(top.token_ids) == row.topk(5).indices.tolist()
        torch.testing.assert_close(torch.tensor(top.logprobs).double(), row.topk(5).values, atol=1e-4, rtol=0)
        assert output.logprobs[0] == pytest.approx(float(row[output.token_ids[0]]), abs=1e-4)


async def text_of(engine: EngineClient, llama: TinyLlama, request: Submit) -> tuple[str, Finish | None]:
    found = await outputs(engine, request)
    tokens = [token for output in found for token in output.token_ids]
    return load_tokenizer(llama.path).decode(tokens), found[-1].finish


def structured(name: str, kind: Any, text: str, max_tokens: int = 60, **changes: Any) -> Submit:
    values = {"temperature": 1.5, "stop_token_ids": (EOS,), "grammar": Grammar(kind, text)} | changes
    return submit(name, PROMPT[:12], max_tokens, **values)


async def test_structured_output_validates_also_after_preemption(engine: EngineClient, llama: TinyLlama) -> None:
    requests = [structured(f"json-{i}", "json_schema", json.dumps(SCHEMA), seed=i) for i in range(6)]
    requests += [structured(f"regex-{i}", "regex", "([a-f]{8}-){6}[0-9]{4}", 80, seed=i) for i in range(4)]
    alone = [await text_of(engine, llama, request) for request in requests]
    before = (await engine.state()).load.preemptions
    together = await asyncio.gather(*(text_of(engine, llama, request) for request in requests))
    assert (await engine.state()).load.preemptions > before, "too much room for this test"
    assert together == alone
    for text, finish in together[:6]:
        assert finish in (Finish.STOP, Finish.LENGTH)  # a random model may fill 60 tokens with white space
        if finish == Finish.STOP:
            jsonschema.validate(json.loads(text), SCHEMA)
    assert sum(finish == Finish.STOP for _, finish in together[:6]) >= 2
    for text, finish in together[6:]:
        assert finish == Finish.STOP
        assert re.fullmatch("([a-f]{8}-){6}[0-9]{4}", text)


async def test_structured_output_ends_at_max_tokens_in_the_middle(engine: EngineClient, llama: TinyLlama) -> None:
    text, finish = await text_of(engine, llama, structured("cut", "regex", "[a-c]{20}", 5))
    assert finish == Finish.LENGTH
    assert re.fullmatch("[a-c]{5}", text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grammar": Grammar("json_schema", '{"type": "foo"}')}, "foo"),
        ({"grammar": Grammar("regex", "(a")}, "unclosed"),
        ({"grammar": Grammar("regex", "a" * 5000)}, "at most"),
        ({"grammar": Grammar("regex", "a"), "stop_token_ids": ()}, "stop token"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
async def test_what_cannot_work_is_refused_and_the_engine_goes_on(
    engine: EngineClient, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestRefused, match=said) as refused:
        await engine.submit(submit("refused", PROMPT[:5], 4, **({"stop_token_ids": (EOS,)} | changes)))
    assert refused.value.reason == "InvalidRequest"
    assert len(await generate(engine, submit("after", PROMPT[:5], 3))) == 3
