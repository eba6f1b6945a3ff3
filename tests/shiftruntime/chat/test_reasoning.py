"""Thoughts apart from the answer, split at every border."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftruntime.server.chat.reasoning import ReasoningSplitter


def split(pieces: Sequence[str], begun: bool) -> tuple[str, str]:
    splitter = ReasoningSplitter(begun)
    parts = [*(splitter.push(piece) for piece in pieces), splitter.finish()]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


CASES = [
    ("<think>\nfirst  one\n\nthen\n</think>\n\nanswer\n", False, ("first  one\n\nthen", "answer\n")),
    ("\n<think>a</think>b", False, ("a", "b")),
    ("<think>\n\n</think>\n\nanswer", False, ("", "answer")),
    ("answer with <think> inside </think>", False, ("", "answer with <think> inside </think>")),
    ("  <thin", False, ("", "  <thin")),
    ("<think>never ends </thi", False, ("never ends </thi", "")),
    ("a < b </think> c", True, ("a < b", "c")),
    ("\nstill thinking ", True, ("still thinking", "")),
    ("", False, ("", "")),
]


@pytest.mark.parametrize(("text", "begun", "wanted"), CASES)
def test_thoughts_are_split_at_every_border(text: str, begun: bool, wanted: tuple[str, str]) -> None:
    assert split(list(text), begun) == wanted
    for border in range(len(text) + 1):
        assert split([text[:border], text[border:]], begun) == wanted


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "/", " ", "\n", "a", ">"]), max_size=10), st.booleans()
)
def test_any_text_splits_the_same_by_characters(scraps: list[str], begun: bool) -> None:
    text = "".join(scraps)
    assert split(list(text), begun) == split([text], begun)
