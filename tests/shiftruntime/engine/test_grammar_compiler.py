"""Grammars are compiled beside the loop: nothing waits for them longer than the deadline."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.engines import submit
from helpers.tiny_models import save_tokenizer
from shiftcore.limits import QueueFullError
from shiftruntime.engine.grammar import GrammarError, Matcher, Vocabulary, compile_grammar
from shiftruntime.engine.grammar_compiler import (
    COMPILE_SECONDS,
    MAX_CACHED,
    MAX_WAITING,
    Compiled,
    GrammarCompiler,
)
from shiftruntime.engine.messages import Grammar, Submit
from shiftruntime.models.tokenizer import load_tokenizer

WAIT_SECONDS = 20.0


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Vocabulary(load_tokenizer(folder), size=131)


class Gate:
    """Compiles when it is open; counts."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.compiled: list[Grammar] = []

    def __call__(self, grammar: Grammar, vocabulary: Vocabulary) -> Matcher:
        assert self.open.wait(WAIT_SECONDS)
        self.compiled.append(grammar)
        return compile_grammar(grammar, vocabulary)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def asking(name: str, expression: str) -> Submit:
    return submit(name, (3,), 4, grammar=Grammar("regex", expression), stop_token_ids=(1,))


def take(compiler: GrammarCompiler, now: float = 0.0) -> list[Compiled]:
    """What comes once the compiler says that there is something."""
    ready, _, _ = select.select([compiler.wake], [], [], WAIT_SECONDS)
    assert ready, f"nothing within {WAIT_SECONDS:g} s"
    return compiler.take(now)


def test_one_compilation_serves_all_who_wait_and_later_ones(vocabulary: Vocabulary, gate: Gate) -> None:
    compiler = GrammarCompiler(lambda: vocabulary, gate)
    assert compiler.compile(asking("a", "x+"), 0.0) is None
    assert compiler.compile(asking("b", "x+"), 1.0) is None
    assert compiler.take(2.0) == []
    gate.open.set()
    taken = take(compiler, 2.0)
    assert [(c.submit.request_id, c.arrival_seconds) for c in taken] == [("a", 0.0), ("b", 1.0)]
    assert all(isinstance(c.result, Matcher) for c in taken)
    assert len({id(c.result) for c in taken}) == 2, "each has a state of its own"
    assert isinstance(compiler.compile(asking("c", "x+"), 3.0), Matcher)
    assert len(gate.compiled) == 1


def test_a_bad_grammar_is_refused_and_the_next_one_compiles(vocabulary: Vocabulary, gate: Gate) -> None:
    gate.open.set()
    compiler = GrammarCompiler(lambda: vocabulary, gate)
    compiler.compile(asking("bad", "(a"), 0.0)
    (refused,) = take(compiler)
    assert isinstance(refused.result, GrammarError)
    compiler.compile(asking("good", "a"), 0.0)
    (good,) = take(compiler)
    assert isinstance(good.result, Matcher)


def test_a_folder_without_tokenizer_refuses_grammars_by_name(tmp_path: Path) -> None:
    compiler = GrammarCompiler(lambda: Vocabulary(load_tokenizer(tmp_path), 131))
    compiler.compile(asking("a", "x"), 0.0)
    (refused,) = take(compiler)
    assert "tokenizer.json" in str(refused.result)


def test_a_slow_compilation_is_refused_at_its_deadline(vocabulary: Vocabulary, gate: Gate) -> None:
    compiler = GrammarCompiler(lambda: vocabulary, gate)
    compiler.compile(asking("a", "x"), 0.0)
    assert compiler.take(COMPILE_SECONDS - 0.1) == []
    (late,) = compiler.take(COMPILE_SECONDS + 0.1)
    assert "not compiled within" in str(late.result)
    assert not compiler.waits("a")
    gate.open.set()
    assert take(compiler) == []  # nobody waits, but it is known from now on
    assert isinstance(compiler.compile(asking("b", "x"), 0.0), Matcher)


def test_an_aborted_request_is_forgotten(vocabulary: Vocabulary, gate: Gate) -> None:
    compiler = GrammarCompiler(lambda: vocabulary, gate)
    compiler.compile(asking("a", "x"), 0.0)
    assert compiler.waits("a")
    assert compiler.cancel("a")
    assert not compiler.cancel("a")
    gate.open.set()
    assert take(compiler) == []


def test_who_waits_and_what_is_kept_are_bounded(vocabulary: Vocabulary, gate: Gate) -> None:
    compiler = GrammarCompiler(lambda: vocabulary, gate)
    for i in range(MAX_WAITING):
        compiler.compile(asking(f"r{i}", f"x{{{i % (2 * MAX_CACHED)}}}"), 0.0)
    with pytest.raises(QueueFullError, match=f"{MAX_WAITING} requests wait"):
        compiler.compile(asking("one too many", "y"), 0.0)
    gate.open.set()
    taken: list[Compiled] = []
    deadline = time.monotonic() + WAIT_SECONDS
    while len(taken) < MAX_WAITING and time.monotonic() < deadline:
        taken += take(compiler)
    assert [c.submit.request_id for c in taken if not isinstance(c.result, Matcher)] == []
    assert len(compiler._cache) == MAX_CACHED
    assert compiler.compile(asking("forgotten", "x{0}"), 0.0) is None
