"""The requests of one engine from Submit to their last Output: admission, histories, and how each went."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import msgspec
from shiftcore.scheduler import (
    DeadlinePassedError,
    DuplicateRequestError,
    Finish,
    NeverFitsError,
    QueueFullError,
    Request,
    Scheduler,
)
from shiftprotos import contract

from shiftruntime.engine.grammar import GrammarError, Matcher
from shiftruntime.engine.grammar_compiler import GrammarCompiler
from shiftruntime.engine.journeys import Journeys
from shiftruntime.engine.messages import Admitted, Journey, Output, Refused, Sampling, Submit
from shiftruntime.engine.samples import History, SamplingError, StepResults
from shiftruntime.engine.tally import Tally
from shiftruntime.engine.verbs import Control

_REFUSALS: dict[type[Exception], str] = {
    QueueFullError: contract.REFUSED_QUEUE_FULL,
    DuplicateRequestError: contract.REFUSED_DUPLICATE_REQUEST,
    NeverFitsError: contract.REFUSED_INVALID_REQUEST,
    DeadlinePassedError: contract.REFUSED_DEADLINE,
    SamplingError: contract.REFUSED_INVALID_REQUEST,
    GrammarError: contract.REFUSED_INVALID_REQUEST,
}

_log = logging.getLogger(__name__)

Send = Callable[[msgspec.Struct], None]


class Requests:
    """Those that were admitted and have not ended; ``samplings`` and ``histories`` by their ids."""

    def __init__(
        self, scheduler: Scheduler, control: Control, grammars: GrammarCompiler, tally: Tally, send: Send
    ) -> None:
        self.samplings: dict[str, Sampling] = {}
        self.histories: dict[str, History] = {}
        self.journeys = Journeys()
        self._scheduler = scheduler
        self._control = control
        self._grammars = grammars
        self._tally = tally
        self._send = send

    def receive(self, message: Submit) -> None:
        """Submit at once, or when the grammar has been compiled beside the loop."""
        now = time.monotonic()
        matcher = None
        try:
            if self._grammars.waits(message.request_id):
                raise DuplicateRequestError(f"request {message.request_id} is in flight")
            if message.sampling.grammar is not None:
                matcher = self._grammars.compile(message, now)
                if matcher is None:
                    return
        except (DuplicateRequestError, GrammarError, QueueFullError) as error:
            self._send(Refused(message.request_id, _REFUSALS[type(error)], str(error)))
        else:
            self._submit(message, now, matcher)

    def take_grammars(self) -> None:
        """Go on with the requests whose grammar is there now."""
        for compiled in self._grammars.take(time.monotonic()):
            if isinstance(compiled.result, GrammarError):
                refused = Refused(compiled.submit.request_id, contract.REFUSED_INVALID_REQUEST, str(compiled.result))
                self._send(refused)
            else:
                self._submit(compiled.submit, compiled.arrival_seconds, compiled.result)

    def abort(self, request_id: str) -> None:
        if self._grammars.cancel(request_id):  # it has been neither admitted nor refused
            self._send(Refused(request_id, contract.REFUSED_ABORTED, "aborted while its grammar was compiled"))
        request = self._scheduler.find(request_id)
        if request is not None:
            self._scheduler.abort(request_id)
            self._end(request, Finish.ABORT)

    def expire(self, requests: Iterable[Request]) -> None:
        """The scheduler has ended these for their deadline."""
        for request in requests:
            self._end(request, Finish.DEADLINE)

    def complete(self, results: StepResults) -> None:
        """A step has ended: let the scheduler know its tokens, and send what is new of every request."""
        for request, start, scores in results.scores:
            if not request.ended and (new := self.histories[request.id].take_scores(start, scores)):
                self._send(Output(request.id, (), prompt_logprobs=new))
        for request, token, finish in self._scheduler.complete(results.tokens):
            sampling = self.samplings[request.id]
            self._tally.output(request, finish)
            self._send(
                Output(
                    request.id,
                    (token,),
                    (results.logprobs[request.id],) if sampling.logprobs else (),
                    finish,
                    (results.likeliest[request.id],) if sampling.top_logprobs else (),
                    journey=self._forget(request) if finish else None,
                )
            )
            if finish is None:
                self._go_on(request, token)

    def _submit(self, message: Submit, now: float, matcher: Matcher | None) -> None:
        s = message.sampling
        request = _request(message, now)
        if self._control.draining:
            self._send(Refused(request.id, contract.REFUSED_DRAINING, "this pod is draining; retry on another"))
            return
        try:
            history = History(s, request.prompt, matcher=matcher)
            self._scheduler.add(request)
        except tuple(_REFUSALS) as error:
            self._send(Refused(request.id, _REFUSALS[type(error)], str(error)))
        else:
            self.samplings[request.id], self.histories[request.id] = s, history
            self._tally.prompt(len(request.prompt), now)
            self._control.refuse_calibrations()
            self._send(Admitted(request.id))

    def _go_on(self, request: Request, token: int) -> None:
        try:
            self.histories[request.id].accept(token)
        except GrammarError as error:
            _log.warning("request %s ends: %s", request.id, error)
            self._scheduler.abort(request.id)
            self._end(request, Finish.ABORT)

    def _end(self, request: Request, finish: Finish) -> None:
        """Report an end that no token comes with."""
        self._send(Output(request.id, (), finish=finish, journey=self._forget(request)))

    def _forget(self, request: Request) -> Journey:
        """Nothing is looked up under the id of an ended request any more, also if it is still in flight."""
        del self.samplings[request.id], self.histories[request.id]
        self._tally.forget(request)
        return self.journeys.end(request, time.monotonic())


def _request(message: Submit, now: float) -> Request:
    s, timeout = message.sampling, message.timeout_seconds
    return Request(
        message.request_id,
        message.prompt,
        s.max_tokens,
        frozenset(s.stop_token_ids),
        arrival_seconds=now,
        deadline=None if timeout is None else now + timeout,
        tenant=message.tenant,
        priority=message.priority,
        waits_for=message.shares_prompt_with,
        cache_salt=message.cache_salt,
        skip_cache_read=s.prompt_logprobs,
    )
