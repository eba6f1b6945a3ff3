"""The loop: schedule → run → complete, one step after the other, each in the gear that suits it."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable

import msgspec
from shiftcore.blocks import BlockPool
from shiftcore.gears import GearTable, choose, threshold_in_use
from shiftcore.layout import Gear
from shiftcore.policy import Policy, PolicyError, StaleGenerationError, accept
from shiftcore.scheduler import (
    Batch,
    DeadlinePassedError,
    DuplicateRequestError,
    Finish,
    Limits,
    NeverFitsError,
    QueueFullError,
    Request,
    Scheduler,
)
from shiftprotos import contract

from shiftruntime.engine.grammar import GrammarError, Matcher, Vocabulary
from shiftruntime.engine.grammar_compiler import GrammarCompiler
from shiftruntime.engine.journeys import Journeys
from shiftruntime.engine.loads import LoadWindows
from shiftruntime.engine.messages import (
    STEP_BUCKETS_SECONDS,
    Abort,
    Admitted,
    Answer,
    Call,
    EngineState,
    GearState,
    Journey,
    LoadState,
    Output,
    Refused,
    Sampling,
    Shutdown,
    Submit,
    ToEngine,
)
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.pacing import step_budget
from shiftruntime.engine.plans import plan_chunks
from shiftruntime.engine.ranks import RankGroup
from shiftruntime.engine.samples import History, SamplingError, StepResults, step_results
from shiftruntime.engine.startup import Started, Startup
from shiftruntime.models.tokenizer import load_tokenizer
from shiftruntime.worker.messages import Done, StepPlan

_QUIET_SECONDS = 1.0  # after which the books are checked: in a large pool that takes some 10 ms
_IDLE_PROBE_SHARE = 0.3  # of the step timeout: how long ranks may be idle before they are asked whether they live

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


class Engine:
    """Serves requests from the front end; ``handle`` may be called while a step runs."""

    def __init__(self, options: EngineOptions, startup: Startup, started: Started, ranks: RankGroup, send: Send):
        self._options = options
        self._startup = startup
        self._started = started
        self._ranks = ranks
        self._send = send
        self.table: GearTable = started.table
        self.policy: Policy = options.policy
        limits = Limits(
            options.max_num_seqs,
            options.max_batched_tokens,
            started.max_model_len,
            options.max_waiting_requests,
            options.prefix_cache,
        )
        self.scheduler = Scheduler(
            limits, BlockPool(started.num_blocks, options.block_size), started.config.group_windows
        )
        self._samplings: dict[str, Sampling] = {}
        self._histories: dict[str, History] = {}
        self.grammars = GrammarCompiler(lambda: Vocabulary(load_tokenizer(options.model), started.config.vocab_size))
        self._first_token: dict[str, float] = {}
        self._calibrations: list[int] = []  # call ids that wait for an idle moment
        self._journeys = Journeys()
        self._windows = LoadWindows()
        self._steps: Counter[Gear] = Counter()
        self._tokens: Counter[Gear] = Counter()
        self._busy_seconds: defaultdict[Gear, float] = defaultdict(float)
        self._step_counts: defaultdict[Gear, list[int]] = defaultdict(lambda: [0] * (len(STEP_BUCKETS_SECONDS) + 1))
        self._shifts = 0
        self._last_gear: Gear | None = None
        self._generation_applied = -1
        self._draining = False
        self._unchecked_since: float | None = None  # when a step last changed the books
        self.stopping = False

    def step(self) -> bool:
        """Run one step; False if there was nothing to do."""
        self.take_grammars()
        options = self._options
        budget = step_budget(self.scheduler, self.table, self.policy, options.tpot_target_seconds, options.block_size)
        batch = self.scheduler.schedule(time.monotonic(), budget)
        for request in self.scheduler.take_expired():
            self._end(request, Finish.DEADLINE)
        if not batch:
            return self._idle()
        tokens = sum(chunk.length for chunk in batch)
        gear = choose(tokens, self.table, self.policy)
        started = time.monotonic()
        plan = self._plan(gear, batch)
        done = self._ranks.run(plan)
        self._account(gear, batch, tokens, time.monotonic() - started, done)
        self._complete(batch, step_results(batch, plan.chunks, done))
        self._unchecked_since = time.monotonic()
        return True

    def handle(self, message: ToEngine) -> None:
        """Answer the front end; never waits for a step."""
        match message:
            case Submit():
                self._receive(message)
            case Abort():
                self._abort(message.request_id)
            case Call():
                self._call(message)
            case Shutdown():
                self.stopping = True

    # --- one step ---------------------------------------------------------------------------------------------------

    def _plan(self, gear: Gear, batch: Batch) -> StepPlan:
        chunks = plan_chunks(batch, self._samplings, self._options.block_size, self._histories)
        return StepPlan(self._ranks.last_step + 1, gear.name, self.policy.generation, chunks)

    def _account(self, gear: Gear, batch: Batch, tokens: int, seconds: float, done: Done) -> None:
        now = time.monotonic()
        self._steps[gear] += 1
        self._tokens[gear] += tokens
        self._busy_seconds[gear] += seconds
        self._step_counts[gear][bisect_left(STEP_BUCKETS_SECONDS, seconds)] += 1
        self._shifts += self._last_gear is not None and self._last_gear != gear
        self._last_gear = gear
        self._journeys.ran(batch, gear)
        self._generation_applied = done.generation
        self._windows.step_tokens.add(now, tokens)
        self._windows.busy_seconds.add(now, seconds)
        self._windows.output_tokens.add(now, sum(chunk.samples for chunk in batch))

    def _complete(self, batch: Batch, results: StepResults) -> None:
        for request, start, scores in results.scores:
            if not request.ended and (new := self._histories[request.id].take_scores(start, scores)):
                self._send(Output(request.id, (), prompt_logprobs=new))
        for request, token, finish in self.scheduler.complete(results.tokens):
            sampling = self._samplings[request.id]
            self._observe(request, finish)
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

    def _go_on(self, request: Request, token: int) -> None:
        try:
            self._histories[request.id].accept(token)
        except GrammarError as error:
            _log.warning("request %s ends: %s", request.id, error)
            self.scheduler.abort(request.id)
            self._end(request, Finish.ABORT)

    def _observe(self, request: Request, finish: Finish | None) -> None:
        now = time.monotonic()
        first = self._first_token.setdefault(request.id, now)
        if first == now:
            self._windows.ttft_seconds.add(now, now - request.arrival_seconds)
        if finish is not None and request.num_output > 1:
            self._windows.tpot_seconds.add(now, (now - first) / (request.num_output - 1))

    def _idle(self) -> bool:
        """Without requests: let a new policy reach the ranks, and check the books once when it is quiet."""
        if self._generation_applied != self.policy.generation:
            done = self._ranks.run(StepPlan(self._ranks.last_step + 1, self.table.latency.name, self.policy.generation))
            self._generation_applied = done.generation
            return True
        now = time.monotonic()
        if now - self._ranks.last_answer_seconds > self._options.step_timeout_seconds * _IDLE_PROBE_SHARE:
            # A rank that stands still is found without a request, and the pod restarted before one needs it.
            self._ranks.run(StepPlan(self._ranks.last_step + 1, self.table.latency.name, self.policy.generation))
            return True
        if not self.scheduler.running and not self.scheduler.waiting:
            if self._calibrations:
                self._calibrate()
                return True
            if self._unchecked_since is not None and now - self._unchecked_since > _QUIET_SECONDS:
                self.scheduler.check_idle()
                self._unchecked_since = None
        return False

    # --- the front end ----------------------------------------------------------------------------------------------

    def _receive(self, message: Submit) -> None:
        """Submit at once, or when the grammar has been compiled beside the loop."""
        now = time.monotonic()
        matcher = None
        try:
            if self.grammars.waits(message.request_id):
                raise DuplicateRequestError(f"request {message.request_id} is in flight")
            if message.sampling.grammar is not None:
                matcher = self.grammars.compile(message, now)
                if matcher is None:
                    return
        except (DuplicateRequestError, GrammarError, QueueFullError) as error:
            self._send(Refused(message.request_id, _REFUSALS[type(error)], str(error)))
        else:
            self._submit(message, now, matcher)

    def take_grammars(self) -> None:
        """Go on with the requests whose grammar is there now."""
        for compiled in self.grammars.take(time.monotonic()):
            if isinstance(compiled.result, GrammarError):
                refused = Refused(compiled.submit.request_id, contract.REFUSED_INVALID_REQUEST, str(compiled.result))
                self._send(refused)
            else:
                self._submit(compiled.submit, compiled.arrival_seconds, compiled.result)

    def _submit(self, message: Submit, now: float, matcher: Matcher | None) -> None:
        s = message.sampling
        request = _request(message, now)
        if self._draining:
            self._send(Refused(request.id, contract.REFUSED_DRAINING, "this pod is draining; retry on another"))
            return
        try:
            history = History(s, request.prompt, matcher=matcher)
            self.scheduler.add(request)
        except tuple(_REFUSALS) as error:
            self._send(Refused(request.id, _REFUSALS[type(error)], str(error)))
        else:
            self._samplings[request.id], self._histories[request.id] = s, history
            self._windows.prompt_tokens.add(now, len(request.prompt))
            for call_id in self._calibrations:
                self._send(
                    Answer(call_id, error_kind=contract.REFUSED_BUSY, error="a request came first; calibrate again")
                )
            self._calibrations.clear()
            self._send(Admitted(request.id))

    def _abort(self, request_id: str) -> None:
        if self.grammars.cancel(request_id):  # it has been neither admitted nor refused
            self._send(Refused(request_id, contract.REFUSED_ABORTED, "aborted while its grammar was compiled"))
        request = self.scheduler.find(request_id)
        if request is not None:
            self.scheduler.abort(request_id)
            self._end(request, Finish.ABORT)

    def _end(self, request: Request, finish: Finish) -> None:
        """Report an end that no token comes with."""
        self._send(Output(request.id, (), finish=finish, journey=self._forget(request)))

    def _forget(self, request: Request) -> Journey:
        """Nothing is looked up under the id of an ended request any more, also if it is still in flight."""
        del self._samplings[request.id], self._histories[request.id]
        self._first_token.pop(request.id, None)
        return self._journeys.end(request, time.monotonic())

    def _call(self, call: Call) -> None:
        match call.verb:
            case "state":
                self._send(Answer(call.call_id, self.state()))
            case "set_policy":
                self._send(self._set_policy(call))
            case "drain":
                self._draining = True
                self._send(Answer(call.call_id, self.state()))
            case "calibrate":
                if self.scheduler.running or self.scheduler.waiting:
                    text = f"{len(self.scheduler.running)} requests run; drain the pod or wait, then calibrate"
                    self._send(Answer(call.call_id, error_kind=contract.REFUSED_BUSY, error=text))
                else:
                    self._calibrations.append(call.call_id)
            case verb:
                self._send(Answer(call.call_id, error_kind="InvalidCall", error=f"no verb {verb!r}"))

    def _set_policy(self, call: Call) -> Answer:
        assert call.policy is not None, "set_policy without a policy"
        try:
            self.policy = accept(self.policy, call.policy, self.table.gears)
        except StaleGenerationError as error:
            return Answer(call.call_id, error_kind=contract.REFUSED_STALE_GENERATION, error=str(error))
        except PolicyError as error:
            return Answer(call.call_id, error_kind=contract.REFUSED_INVALID_POLICY, error=str(error))
        return Answer(call.call_id, self.state())

    def _calibrate(self) -> None:
        self.scheduler.clear_cache()
        costs = self._startup.calibrate(self._started.max_model_len, self._started.num_blocks)
        self.table = GearTable(self.table.base, costs)
        for call_id in self._calibrations:
            self._send(Answer(call_id, self.state()))
        self._calibrations.clear()

    # --- what it knows ----------------------------------------------------------------------------------------------

    def state(self) -> EngineState:
        crossover = self.table.crossover
        threshold, source = threshold_in_use(self.table, self.policy)
        return EngineState(
            policy=self.policy,
            generation_applied=max(0, self._generation_applied),
            gears=tuple(self._gear_state(gear) for gear in self.table.gears),
            base_gear=self.table.base.name,
            crossover_tokens=crossover.tokens,
            crossover_reason=crossover.reason,
            crossover_message=crossover.message,
            threshold_tokens=threshold,
            threshold_source=source,
            shifts=self._shifts,
            load=self._load(),
            self_check=self._started.self_check,
            draining=self._draining,
        )

    def _gear_state(self, gear: Gear) -> GearState:
        curve = self.table.costs.get(gear)
        return GearState(
            name=gear.name,
            sequence=gear.sequence,
            tensor=gear.tensor,
            costs=curve.points if curve else (),
            steps=self._steps[gear],
            tokens=self._tokens[gear],
            busy_seconds=self._busy_seconds[gear],
            capacity_tokens_per_second=curve.capacity_tokens_per_second() if curve else 0.0,
            step_counts=tuple(self._step_counts[gear]),
        )

    def _load(self) -> LoadState:
        now, w, scheduler = time.monotonic(), self._windows, self.scheduler
        return LoadState(
            running_requests=len(scheduler.running),
            waiting_requests=len(scheduler.waiting),
            waiting_tokens=scheduler.waiting_tokens,
            kv_blocks_total=scheduler.pool.num_blocks,
            kv_blocks_free=scheduler.pool.num_available,
            oldest_wait_seconds=scheduler.oldest_wait(now),
            tokens_per_second=w.step_tokens.rate(now),
            busy_fraction=min(1.0, w.busy_seconds.rate(now)),
            max_running_requests=scheduler.limits.max_num_seqs,
            ttft_p95_seconds=w.ttft_seconds.percentile95(now),
            tpot_p95_seconds=w.tpot_seconds.percentile95(now),
            prompt_tokens_per_second=w.prompt_tokens.rate(now),
            output_tokens_per_second=w.output_tokens.rate(now),
            kv_blocks_cached=scheduler.pool.num_cached,
            prefix_queried_tokens=scheduler.counts.queried_tokens,
            prefix_hit_tokens=scheduler.counts.hit_tokens,
            preemptions=scheduler.counts.preemptions,
        )


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
        skip_cache_read=s.prompt_logprobs,
    )
