"""Stop strings, as a property: however the text is cut into tokens, the same is shown."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftruntime.server.stops import StopMatcher
from shiftruntime.server.text import Completion

LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def shown(text: str, stops: list[str], cuts: list[int]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    borders = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(borders)]
    out = "".join(matcher.push(piece) for piece in pieces)
    return out + ("" if matcher.met else matcher.flush()), matcher.met


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """By brute force: the first position at which a stop string has just been completed ends the text."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False


@given(LETTERS, STOPS, st.lists(st.integers(0, 30), max_size=10))
def test_cuts_change_nothing(text, stops, cuts):
    assert shown(text, stops, cuts) == expected(text, stops)


@given(LETTERS, STOPS)
def test_nothing_is_shown_that_could_still_be_a_stop_string(text, stops):
    matcher = StopMatcher(stops)
    out = ""
    for letter in text:
        out += matcher.push(letter)
        assert expected(text, stops)[0].startswith(out)


def test_without_stop_strings_nothing_is_held():
    matcher = StopMatcher(())
    assert matcher.push("abc") == "abc"
    assert matcher.flush() == ""


@given(LETTERS, STOPS, st.integers(0, 30), st.lists(st.integers(0, 30), max_size=6))
def test_no_stop_string_ends_in_text_that_may_not_stop(text, stops, exempt, cuts):
    """It may begin there, and is then cut out whole."""
    matcher, exempt = StopMatcher(stops), min(exempt, len(text))
    borders = sorted({0, exempt, len(text), *(cut for cut in cuts if cut < len(text))})
    out = "".join(matcher.push(text[a:b], may_stop=b > exempt) for a, b in pairwise(borders))
    out += "" if matcher.met else matcher.flush()
    wanted = (text, False)
    for end in range(exempt + 1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            wanted = text[: end - max(map(len, done))], True
            break
    assert (out, matcher.met) == wanted


@pytest.mark.parametrize(("min_tokens", "text"), [(0, "hell"), (4, "hell"), (5, "hello w"), (8, "hello world")])
def test_stop_strings_wait_for_min_tokens(fake_text, min_tokens, text):
    completion = Completion(fake_text.decoder(), ["o"], (), min_tokens)
    assert completion.push(list(b"hello world"))[0] + completion.finish() == text
