"""One engine on a virtual clock: the runtime's loop (schedule, choose a gear, run, complete) with a modelled step.

As in the runtime a step is planned while the one before runs, so that a request which arrives meanwhile begins two
steps later. Runs of equal decode steps skip the scheduler, and only they: what each step takes is added up one by one,
so that the result is the same to the last bit.
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
from shiftcore.request import Batch, Finish
from shiftcore.scheduler import Request
from shiftcore.steady import SteadyScheduler

from shiftsim.errors import UserError
from shiftsim.generation import Generation
from shiftsim.measures import Measures
from shiftsim.work import Executor, Work, prompt_pairs

_MOST_AT_ONCE = 4096  # steps whose seconds are asked for together


@dataclass(frozen=True)
class EngineOptions:
    """As the runtime's options of the same names."""

    max_num_seqs: int = 1024
    max_batched_tokens: int = 8192
    max_model_len: int = 131_072
    max_waiting_requests: int = 1 << 30  # a replay loses nobody: who cannot begin waits
    block_size: int = 16
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
    """In flight."""

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
        self._flight: _Step | None = None
        self._run: _Run | None = None
        self._last_gear: Gear | None = None
        self._tokens = _AnyToken()
        self.now = 0.0  # of the next decision

    @property
    def scheduler(self) -> SteadyScheduler:
        """As it stands now."""
        self._settle()
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
        """For steps that are planned from now on."""
        self._settle()
        self._policy = policy
        self._chosen.clear()

    def submit(self, request: Generation, now: float) -> str:
        """Queue a request; the reason when it can never run here, else nothing."""
        if not self.unfinished and self._flight is None:
            self.now = max(self.now, now)
        self._settle()
        self._measures.series.arrival(request.arrival_seconds)
        try:
            self._scheduler.add(request)
        except (NeverFitsError, QueueFullError) as error:
            return str(error)
        return ""

    def advance(self, until: float = math.inf) -> None:
        """Take every decision that is due before this moment; a step that begins before it may end after it."""
        while self.now < until and (self._flight is not None or self.unfinished):
            if not self._skip(until):
                self._step()

    # --- one step -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        step = self._flight or self._begin()
        assert step is not None, f"{self.unfinished} requests are here and none can run"
        self._flight = self._begin() if self._options.overlap else None
        seconds = self._executor.seconds(step.gear, step.work)
        self.now += seconds
        self._count(step.gear, 1, step.work.tokens)
        self.use[step.gear].seconds += seconds
        self._record(step.gear, self.now - seconds, step.work.tokens, step.work.sampled, self._kv_share())
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

    def _skip(self, until: float) -> bool:
        """Take the steps that only repeat at once; False if there are none."""
        run = self._run or self._steady_run()
        if run is None:
            return False
        self._run = run
        n = run.work.decodes
        before, work = run.taken, Work(0, 0, n, run.work.decode_context + run.taken * n, n)
        start = self.now
        steps, first_end = self._pass(run.gear, work, run.limit - run.taken, until)
        run.taken += steps
        self._count(run.gear, steps, steps * n)
        # The pool does not know yet of what these steps took; on average the half of it.
        grown = (before + steps / 2) * n / (self._pool.num_blocks * self._pool.block_size)
        self._record(run.gear, start, steps * n, steps * n, min(1.0, self._kv_share() + grown))
        if not before:
            for request in self._scheduler.running:
                self._begun(request, first_end)
        if run.taken == run.limit:
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
        """Let steps pass, those that begin before ``until``; how many, and when the first of them ended."""
        use, now, done = self.use[gear], self.now, 0
        busy, first_end = use.seconds, 0.0
        likely = 1
        while done < limit and now < until:
            after = Work(0, 0, work.decodes, work.decode_context + done * work.decodes, work.sampled)
            for seconds in self._executor.decode_seconds(gear, after, min(limit - done, likely)):
                if now >= until:
                    break
                now += seconds
                busy += seconds
                done += 1
                first_end = first_end or now
            # As many as should fit, once it is known what one takes.
            rest = (until - now) / (now - self.now) * done if until < math.inf else math.inf
            likely = int(min(rest + 1, _MOST_AT_ONCE)) if rest > 0 else 1
        self.now, use.seconds = now, busy
        return done, first_end

    def _begun(self, request: Request, now: float) -> None:
        if isinstance(request, Generation) and request.first_token_seconds is None:
            request.first_token_seconds = now
            self._measures.began(request, now)


def work_of(batch: Batch) -> Work:
    """A chunk of one token counts as a decode, also where it is the end of a prompt: it is the same work."""
    tokens = pairs = decodes = context = sampled = 0
    for chunk in batch:
        length, start = chunk.length, chunk.start
        sampled += chunk.samples
        if length == 1:
            decodes += 1
            context += start
        else:
            tokens += length
            pairs += length * start + prompt_pairs(length)
    return Work(tokens, pairs, decodes, context, sampled)
