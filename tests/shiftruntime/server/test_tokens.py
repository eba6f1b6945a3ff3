"""Text to ids and back: long ones leave the event loop to the others, and those that cannot fit are refused at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from shiftprotos.v1 import inference_pb2 as pb
from shiftruntime.engine.messages import Ready
from shiftruntime.models.generation_config import GenerationDefaults
from shiftruntime.models.token_bytes import byte_alphabet
from shiftruntime.models.tokenizer import load_tokenizer
from shiftruntime.server.frontend import Model
from shiftruntime.server.generation_wire import tokenized_to_wire
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.text_source import TokenizerText
from shiftruntime.server.tokens import detokenise, in_thread, tokenise, tokenise_prompt
from shiftruntime.server.validation import MAX_CALL_TOKENS, Limits
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SECONDS = 60.0
WORK_SECONDS = 0.5  # of processor time: what is measured must be long beside the hiccups of a busy machine
TRIES = 3  # which holds up everybody now and then
READY = Ready("fake", "float32", 4096, 300, 4095, ())


def model_of(text, vocab_size: int = 300, max_prompt_tokens: int = 4095) -> Model:
    return Model(READY, text, Limits("fake", vocab_size, max_prompt_tokens, 4096, ()))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TokenizerText:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(byte_alphabet())}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    return TokenizerText(load_tokenizer(folder), GenerationDefaults())


async def stood_still(work: Awaitable[object]) -> float:
    """Which share of its time ``work`` held up the event loop in one piece."""
    task, longest = asyncio.ensure_future(work), 0.0
    start = last = time.monotonic()
    while not task.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    await task
    return longest / (last - start)


async def leaves_the_event_loop(work: Callable[[], Awaitable[object]]) -> bool:
    """Whether the longest gap is less than half of the work; else it is nearly all of it."""
    shares = [await stood_still(work()) for _ in range(TRIES)]
    return min(shares) < 0.5


def seconds_of(function: Callable[..., object], *arguments: object) -> float:
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


async def test_the_event_loop_goes_on_while_a_long_text_is_tokenised(text):
    words = "hello world, this is a text. " * 4096
    while seconds_of(text.encode, words) < WORK_SECONDS:
        words *= 2
    model = model_of(text, max_prompt_tokens=len(words))
    async with asyncio.timeout(SECONDS):
        assert await leaves_the_event_loop(lambda: tokenise_prompt(model, words))


async def test_the_event_loop_goes_on_while_many_ids_are_checked_and_decoded(text):
    model = model_of(text)
    async with asyncio.timeout(SECONDS):
        assert await leaves_the_event_loop(lambda: detokenise(model, [65] * (MAX_CALL_TOKENS // 2)))


class NeverEncodes:
    def __init__(self, longest_token_bytes: int | None) -> None:
        self.longest_token_bytes = longest_token_bytes

    def encode(self, text: str, add_special_tokens: bool = True, at_most: int | None = None) -> list[int]:
        pytest.fail("the text was tokenised")


async def test_a_text_that_cannot_fit_is_refused_without_tokenising():
    model = model_of(NeverEncodes(7), max_prompt_tokens=1000)
    with pytest.raises(Refusal) as caught:
        await tokenise_prompt(model, "é" * 3501)
    assert "7002 bytes; this model takes at most 1000 tokens" in caught.value.message
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PromptTooLong")


async def test_a_text_that_might_fit_is_tokenised(text):
    model = model_of(text)
    assert text.longest_token_bytes is not None
    assert await tokenise_prompt(model, "hello") == text.encode("hello")
    with pytest.raises(Refusal, match="the prompt has 5000 tokens; this model takes at most 4095"):
        await tokenise_prompt(model, "\x00" * 5000)


async def test_a_text_that_is_only_tokenised_may_be_longer_than_a_prompt(text):
    assert len(await tokenise(model_of(text), "\x00" * 5000)) == 5000


async def test_a_call_turns_so_many_tokens_and_no_more(text, monkeypatch):
    with pytest.raises(Refusal, match=f"{MAX_CALL_TOKENS + 1} tokens; one call turns at most") as caught:
        await detokenise(model_of(text), [65] * (MAX_CALL_TOKENS + 1))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    monkeypatch.setattr("shiftruntime.server.tokens.MAX_CALL_TOKENS", 10)
    monkeypatch.setattr("shiftruntime.server.validation.MAX_CALL_TOKENS", 10)
    with pytest.raises(Refusal, match="11 tokens; one call turns at most 10"):
        await tokenise(model_of(text), "\x00" * 11)


async def test_a_long_list_of_ids_is_turned_in_a_thread_of_its_own(fake_text, monkeypatch):
    threads = set()

    class Ids(list):
        def __getitem__(self, position):
            threads.add(threading.current_thread())
            return super().__getitem__(position)

    class Decoder:
        def push(self, token):
            threads.add(threading.current_thread())
            return "x"

        def flush(self):
            return ""

    monkeypatch.setattr(fake_text, "decoder", lambda visible: Decoder(), raising=False)
    assert await detokenise(model_of(fake_text), Ids([65] * 5000)) == "x" * 5000
    assert threads
    assert threading.current_thread() not in threads


async def test_an_unknown_id_far_back_is_named_with_its_position(fake_text):
    with pytest.raises(Refusal, match="token id 300 at position 4999 is unknown"):
        await detokenise(model_of(fake_text), [65] * 4999 + [300])


async def test_the_pieces_of_many_tokens_are_put_together_in_a_thread(fake_text):
    threads = set()

    def bytes_of(token):
        threads.add(threading.current_thread())
        return b"x"

    answer = await in_thread(model_of(fake_text), 5000, tokenized_to_wire, [65] * 5000, bytes_of)
    assert (list(answer.token_ids), list(answer.pieces)) == ([65] * 5000, [b"x"] * 5000)
    assert isinstance(answer, pb.TokenizeResponse)
    assert threading.current_thread() not in threads
