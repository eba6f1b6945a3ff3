"""One engine on a virtual clock: the runtime's loop (schedule, choose a gear, run, complete) with a modelled step.

As in the runtime a step is planned while the one before runs, so that a request which arrives meanwhile begins two
steps later. Who looks between two decisions finds a step under way, whose tokens nobody has yet. Runs of equal decode
steps skip the scheduler, and only they: what each step takes is added up one by one, so that the result is the same to
the last bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from shiftcore.blocks import BlockPool
from shiftcore.gears import choose
from shiftcore.layout import Gear
from shiftcore.limits import Limits, NeverFitsError, QueueFullError
from shiftcore.pacing import step_budget
from shiftcore.policy import Policy
from shiftcore.request import Finish
from shiftcore.scheduler import Request
from shiftcore.steady import SteadyScheduler

from shiftsim.errors import UserError
from shiftsim.generation import Generation
from shiftsim.measures import Measures
from shiftsim.work import BLOCK_SIZE, Executor, Work, ahead_seconds, work_of

_MOST_AT_ONCE = 4096  # steps whose seconds are asked for together


@dataclass(frozen=True)
class EngineOptions:
    """As the runtime's options of the same names."""

    max_num_seqs: int = 1024
    max_batched_tokens: int = 8192
    max_model_len: int = 131_072
    max_waiting_requests: int = 1 << 30  # a replay loses nobody: who cannot begin waits
    block_size: int = BLOCK_SIZE
    policy: Policy = field(default_factory=Policy)
    tpot_target_seconds: float | None = None
    overlap: bool = True
    skip: bool = True  # False takes every step by itself, for comparison

    @property
    def limits(self) -> Limits:
        return Limits(
            self.max_num_seqs,
            self.max_batched_tokens,
            self.max_model_len,
            self.max_waiting_requests,
            prefix_cache=False,
        )


@dataclass
class GearUse:
    """What one gear did."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Step:
    """Planned, or under way."""

    gear: Gear
    work: Work


@dataclass(slots=True)
class _Run:
    """Steps that only repeat, of which ``taken`` have passed; the scheduler hears of them when it is needed again."""

    gear: Gear
    work: Work  # of the first
    limit: int
    taken: int = 0


class _AnyToken(dict[str, int]):
    """What is sampled for whom does not matter."""

    def __missing__(self, request_id: str) -> int:
        return 0


class Engine:
    """Takes requests by ``submit``, in order of time, and decides all that is due before a moment in ``advance``."""

    def __init__(self, executor: Executor, options: EngineOptions, measures: Measures) -> None:
        blocks = executor.kv_tokens // options.block_size
        if not blocks:
            raise UserError(f"a KV cache of {executor.kv_tokens} tokens holds no block of {options.block_size}")
        self._pool = BlockPool(blocks, options.block_size)
        self._scheduler = SteadyScheduler(options.limits, self._pool)
        self.use: defaultdict[Gear, GearUse] = defaultdict(GearUse)
        self.shifts = 0  # steps in another gear than the step before
        self._executor = executor
        self._table = executor.table
        self._options = options
        self._policy = options.policy
        self._measures = measures
        self._chosen: dict[int, Gear] = {}  # by tokens, under the present policy
        self._flight: _Step | None = None  # planned ahead
        self._under_way: _Step | None = None
        self._ends = self._takes = 0.0  # of what is under way: when, and how long
        self._run: _Run | None = None
        self._clock = 0.0  # up to which all is done
        self._last_gear: Gear | None = None
        self._tokens = _AnyToken()
        self.now = 0.0  # of the next decision

    @property
    def scheduler(self) -> SteadyScheduler:
        """As it stands at the moment to which the engine has advanced."""
        self._settle()
        self._begin_due(self._clock)
        return self._scheduler

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._scheduler.waiting)

    @property
    def unfinished(self) -> int:
        """Requests that run or wait."""
        return len(self._scheduler.running) + len(self._scheduler.waiting)

    @property
    def policy(self) -> Policy:
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        """For steps that are planned from the moment on to which the engine has advanced."""
        self._settle()
        self._begin_due(self._clock)
        self._policy = policy
        self._chosen.clear()

    def submit(self, request: Generation, now: float) -> str:
        """Queue a request; the reason when it can never run here, else nothing."""
        self._settle()
        if self._has_work:
            self._begin_due(now)
        else:
            self.now = max(self.now, now)
        self._measures.series.arrival(request.arrival_seconds)
        try:
            self._scheduler.add(request)
        except (NeverFitsError, QueueFullError) as error:
            return str(error)
        return ""

    def advance(self, until: float = math.inf) -> None:
        """Take every decision that is due before this moment, and end every step that ends by it."""
        while self._moves(until):
            pass
        if until < math.inf:
            self._clock = max(self._clock, until)

    def _moves(self, until: float) -> bool:
        if self._under_way is None:
            if self.now >= until or not self._has_work:
                return False
            run = self._run or self._steady_run()
            if run is not None:
                return self._skip(run, until)
            self._start()
        if self._ends > until:
            return False
        self._end()
        return True

    @property
    def _has_work(self) -> bool:
        return self._flight is not None or self.unfinished > 0

    def _begin_due(self, now: float) -> None:
        """Begin the step that has begun by now, before something changes that it must not know of."""
        if self._under_way is None and self.now < now and self._has_work:
            self._start()

    # --- one step -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        ahead, step = self._flight is not None, self._flight or self._begin()
        assert step is not None, f"{self.unfinished} requests are here and none can run"
        self._flight = self._begin() if self._options.overlap else None
        self._under_way = step
        seconds = self._executor.seconds(step.gear, step.work)
        self._takes = ahead_seconds(seconds, self._executor.engine_seconds(step.work)) if ahead else seconds
        self._ends = self.now + self._takes

    def _end(self) -> None:
        step, start = self._under_way, self.now
        assert step is not None, "no step is under way"
        self._under_way, self.now = None, self._ends
        self._count(step.gear, 1, step.work.tokens)
        self.use[step.gear].seconds += self._takes
        self._record(step.gear, start, step.work.tokens, step.work.sampled, self._kv_share())
        for request, _, finish in self._scheduler.complete(self._tokens):
            self._yielded(request, finish)

    def _begin(self) -> _Step | None:
        options = self._options
        budget = step_budget(
            self._scheduler, self._table, self._policy, options.tpot_target_seconds, options.block_size
        )
        batch = self._scheduler.schedule(self.now, budget)
        if not batch:
            return None
        work = work_of(batch)
        return _Step(self._gear(work.tokens), work)

    def _gear(self, tokens: int) -> Gear:
        gear = self._chosen.get(tokens)
        if gear is None:
            gear = self._chosen[tokens] = choose(tokens, self._table, self._policy)
        return gear

    def _yielded(self, request: Request, finish: Finish | None) -> None:
        assert isinstance(request, Generation), f"request {request.id} is of somebody else"
        self._begun(request, self.now)
        if finish is not None:
            self._measures.finished(request, self.now)

    def _count(self, gear: Gear, steps: int, tokens: int) -> None:
        use = self.use[gear]
        use.steps += steps
        use.tokens += tokens
        self.shifts += self._last_gear is not None and self._last_gear != gear
        self._last_gear = gear

    def _record(self, gear: Gear, start: float, tokens: int, output: int, kv: float) -> None:
        self._measures.series.ran(gear, start, self.now, tokens, output, self.waiting, kv)

    def _kv_share(self) -> float:
        return 1 - self._pool.num_available / self._pool.num_blocks

    # --- many steps ---------------------------------------------------------------------------------------------------

    def _skip(self, run: _Run, until: float) -> bool:
        """Take the steps that only repeat at once; whether all of them are taken."""
        self._run = run
        n = run.work.decodes
        before, work = run.taken, Work(0, 0, n, run.work.decode_context + run.taken * n, n)
        start = self.now
        steps, first_end = self._pass(run.gear, work, run.limit - run.taken, until)
        if not steps:
            return False
        run.taken += steps
        self._count(run.gear, steps, steps * n)
        # The pool does not know yet of what these steps took; on average the half of it.
        grown = (before + steps / 2) * n / (self._pool.num_blocks * self._pool.block_size)
        self._record(run.gear, start, steps * n, steps * n, min(1.0, self._kv_share() + grown))
        if not before:
            for request in self._scheduler.running:
                self._begun(request, first_end)
        if run.taken < run.limit:
            return False
        self._settle()
        return True

    def _steady_run(self) -> _Run | None:
        flight, options = self._flight, self._options
        if not options.skip or (flight is None) == options.overlap:
            return None
        running = self._scheduler.running
        gear = self._gear(len(running))
        if flight is not None and flight.gear != gear:
            return None
        limit = self._scheduler.steady_steps()
        if not limit:
            return None
        context = sum(request.computed for request in running)
        return _Run(gear, Work(0, 0, len(running), context, len(running)), limit)

    def _settle(self) -> None:
        """Let the scheduler know of the steps that it was not asked for."""
        run, self._run = self._run, None
        if run is None or not run.taken:
            return
        self._scheduler.repeat(run.taken)
        if self._flight is not None:
            n = run.work.decodes
            self._flight = _Step(run.gear, Work(0, 0, n, run.work.decode_context + run.taken * n, n))

    def _pass(self, gear: Gear, work: Work, limit: int, until: float) -> tuple[int, float]:
        """Let steps pass, those that end by ``until``; how many, and when the first of them ended."""
        use, now, done = self.use[gear], self.now, 0
        busy, first_end = use.seconds, 0.0
        likely, asked = 1, 0
        # Without a plan ahead nothing is hidden. As ``ahead_seconds``, of which all steps of a run have the same.
        whole, charged = self._executor.engine_seconds(work) if self._options.overlap else (0.0, 0.0)
        while done == asked < limit and now < until:
            after = Work(0, 0, work.decodes, work.decode_context + done * work.decodes, work.sampled)
            asked = done + min(limit - done, likely)
            for alone in self._executor.decode_seconds(gear, after, asked - done):
                seconds = max(alone - charged, whole)
                if now + seconds > until:
                    break
                now += seconds
                busy += seconds
                done += 1
                first_end = first_end or now
            # As many as should fit, once it is known what one takes.
            rest = (until - now) / (now - self.now) * done if done and until < math.inf else math.inf
            likely = int(min(rest + 1, _MOST_AT_ONCE)) if rest > 0 else 1
        self.now, use.seconds = now, busy
        return done, first_end

    def _begun(self, request: Request, now: float) -> None:
        if isinstance(request, Generation) and request.first_token_seconds is None:
            request.first_token_seconds = now
            self._measures.began(request, now)
