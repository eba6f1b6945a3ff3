"""Compiles grammars beside the step loop: one thread, a deadline for every request, the latest grammars kept."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from shiftcore.limits import QueueFullError

from shiftruntime.engine.grammar import GrammarError, Matcher, Vocabulary, check_size, compile_grammar
from shiftruntime.engine.messages import Grammar, Submit

COMPILE_SECONDS = 10.0  # of waiting; the first grammar waits for the tokenizer too
MAX_WAITING = 256
MAX_CACHED = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiled:
    """What became of a request's grammar."""

    submit: Submit
    arrival_seconds: float
    result: Matcher | GrammarError


class GrammarCompiler:
    """All methods belong to the step loop. ``wake`` becomes readable when ``take`` has something."""

    def __init__(
        self,
        load: Callable[[], Vocabulary],
        compile_one: Callable[[Grammar, Vocabulary], Matcher] = compile_grammar,
    ) -> None:
        self.wake, self._waker = socket.socketpair()
        self.wake.setblocking(False)
        self._load = load
        self._compile = compile_one
        self._cache: OrderedDict[Grammar, Matcher] = OrderedDict()  # in their first state
        self._waiting: dict[str, tuple[Submit, float]] = {}  # by request id, in order of arrival
        self._compiling: set[Grammar] = set()
        self._jobs: queue.SimpleQueue[Grammar] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Grammar, Matcher | GrammarError]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def compile(self, submit: Submit, now: float) -> Matcher | None:
        """A matcher if this grammar is known; else None, and ``take`` tells. Raises GrammarError or QueueFullError."""
        grammar = submit.sampling.grammar
        assert grammar is not None, f"request {submit.request_id} has no grammar"
        check_size(grammar)
        if grammar in self._cache:
            self._cache.move_to_end(grammar)
            return self._cache[grammar].fresh()
        if len(self._waiting) >= MAX_WAITING:
            raise QueueFullError(f"{len(self._waiting)} requests wait for their grammar to be compiled; retry later")
        self._waiting[submit.request_id] = submit, now
        if grammar not in self._compiling:
            self._compiling.add(grammar)
            self._jobs.put(grammar)
            self._start()
        return None

    def waits(self, request_id: str) -> bool:
        return request_id in self._waiting

    def cancel(self, request_id: str) -> bool:
        """Forget a request that waits; False if it does not."""
        return self._waiting.pop(request_id, None) is not None

    def take(self, now: float) -> list[Compiled]:
        """Requests whose grammar is there, is refused, or took too long."""
        taken: list[Compiled] = []
        with contextlib.suppress(BlockingIOError):
            self.wake.recv(MAX_WAITING)
        while not self._results.empty():
            grammar, result = self._results.get()
            self._compiling.discard(grammar)
            if isinstance(result, Matcher):
                self._cache[grammar] = result
            for name, (submit, arrival) in list(self._waiting.items()):
                if submit.sampling.grammar == grammar:
                    del self._waiting[name]
                    taken.append(Compiled(submit, arrival, _fresh(result)))
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        for name, (submit, arrival) in list(self._waiting.items()):
            if now - arrival > COMPILE_SECONDS:
                del self._waiting[name]
                error = GrammarError(f"the grammar was not compiled within {COMPILE_SECONDS:g} s; simplify it or retry")
                taken.append(Compiled(submit, arrival, error))
        return taken

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="grammars", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        vocabulary: Vocabulary | None = None
        while True:
            grammar = self._jobs.get()
            result: Matcher | GrammarError
            try:
                vocabulary = vocabulary or self._load()
                result = self._compile(grammar, vocabulary)
            except GrammarError as error:
                result = error
            except Exception as error:  # noqa: BLE001  the next grammar must find a worker
                _log.exception("a %s could not be compiled", grammar.kind)
                result = GrammarError(f"the {grammar.kind} could not be compiled: {error}")
            self._results.put((grammar, result))
            self._waker.send(b"\0")


def _fresh(result: Matcher | GrammarError) -> Matcher | GrammarError:
    return result.fresh() if isinstance(result, Matcher) else result
