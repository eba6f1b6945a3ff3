"""The loop: schedule → run → complete, each step in the gear that suits it.

While the ranks run a step, the next one is scheduled and sent to them, so that they never wait for the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from shiftcore.blocks import BlockPool
from shiftcore.costs import CostCurve
from shiftcore.gears import choose
from shiftcore.layout import Gear
from shiftcore.pacing import step_budget
from shiftcore.scheduler import Batch, Limits, Scheduler

from shiftruntime.engine.grammar import Vocabulary
from shiftruntime.engine.grammar_compiler import GrammarCompiler
from shiftruntime.engine.messages import Abort, Call, EngineState, Shutdown, Submit, ToEngine
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.plans import may_run_ahead, plan_chunks
from shiftruntime.engine.ranks import RankGroup
from shiftruntime.engine.requests import Requests
from shiftruntime.engine.samples import step_results
from shiftruntime.engine.startup import Started, Startup
from shiftruntime.engine.state import engine_state
from shiftruntime.engine.tally import Tally
from shiftruntime.engine.verbs import Control
from shiftruntime.models.tokenizer import load_tokenizer
from shiftruntime.worker.messages import ChunkPlan, StepPlan

_QUIET_SECONDS = 1.0  # after which the books are checked: in a large pool that takes some 10 ms
_IDLE_PROBE_SHARE = 0.3  # of the step timeout: how long ranks may be idle before they are asked whether they live

Send = Callable[[msgspec.Struct], None]


@dataclass
class _Running:
    """A step that was sent to the ranks."""

    batch: Batch
    chunks: tuple[ChunkPlan, ...]
    gear: Gear
    tokens: int
    began_seconds: float  # on the monotonic clock; when the step before it ended, if that was later


class Engine:
    """Serves requests from the front end; ``handle`` may be called while a step runs."""

    def __init__(self, options: EngineOptions, startup: Startup, started: Started, ranks: RankGroup, send: Send):
        self._options = options
        self._startup = startup
        self._started = started
        self._ranks = ranks
        limits = Limits(
            options.max_num_seqs,
            options.max_batched_tokens,
            started.max_model_len,
            options.max_waiting_requests,
            options.prefix_cache,
        )
        pool = BlockPool(started.num_blocks, options.block_size)
        self.scheduler = Scheduler(limits, pool, started.config.group_windows)
        self._tally = Tally()
        self._control = Control(started.table, options.policy, self.scheduler, send, self.state)
        self.grammars = GrammarCompiler(lambda: Vocabulary(load_tokenizer(options.model), started.config.vocab_size))
        self._requests = Requests(self.scheduler, self._control, self.grammars, self._tally, send)
        self._running: _Running | None = None  # begun one step ahead
        self._generation_applied = -1
        self._unchecked_since: float | None = None  # when a step last changed the books
        self.stopping = False

    def step(self) -> bool:
        """Complete one step, with the next one begun behind it if need not wait; False if there was nothing to do."""
        self.take_grammars()
        running = self._running or self._begin()
        if running is None:
            return self._idle()
        ahead = self._options.overlap and may_run_ahead(running.batch, self._requests.histories)
        self._running = self._begin(running.batch) if ahead else None
        done = self._ranks.end()
        now = self._unchecked_since = time.monotonic()
        if self._running is not None:
            self._running.began_seconds = now
        self._generation_applied = done.generation
        self._tally.step(running.gear, running.batch, running.tokens, now - running.began_seconds)
        self._requests.journeys.ran(running.batch, running.gear)
        self._requests.complete(step_results(running.batch, running.chunks, done))
        return True

    def take_grammars(self) -> None:
        """Go on with the requests whose grammar is there now."""
        self._requests.take_grammars()

    def handle(self, message: ToEngine) -> None:
        """Answer the front end; never waits for a step."""
        match message:
            case Submit():
                self._requests.receive(message)
            case Abort():
                self._requests.abort(message.request_id)
            case Call():
                self._control.call(message)
            case Shutdown():
                self.stopping = True

    def state(self) -> EngineState:
        return engine_state(
            self._control.table,
            self._control.policy,
            self.scheduler,
            self._tally,
            generation_applied=self._generation_applied,
            self_check=self._started.self_check,
            draining=self._control.draining,
        )

    def _begin(self, before: Batch = ()) -> _Running | None:
        """Schedule a step and send it to the ranks, behind the one in flight; None if nothing can run now."""
        options, table, policy, requests = self._options, self._control.table, self._control.policy, self._requests
        budget = step_budget(self.scheduler, table, policy, options.tpot_target_seconds, options.block_size)
        batch = self.scheduler.schedule(time.monotonic(), budget)
        requests.expire(self.scheduler.take_expired())
        if not batch:
            return None
        tokens = sum(chunk.length for chunk in batch)
        gear = choose(tokens, table, policy)
        began = time.monotonic()
        chunks = plan_chunks(batch, requests.samplings, options.block_size, requests.histories, before)
        self._ranks.begin(StepPlan(self._ranks.last_step + 1, gear.name, policy.generation, chunks))
        return _Running(batch, chunks, gear, tokens, began)

    def _idle(self) -> bool:
        """Without requests: let a new policy reach the ranks, and check the books once when it is quiet."""
        if self._generation_applied != self._control.policy.generation:
            self._generation_applied = self._run_nothing()
            return True
        now = time.monotonic()
        if now - self._ranks.last_answer_seconds > self._options.step_timeout_seconds * _IDLE_PROBE_SHARE:
            # A rank that stands still is found without a request, and the pod restarted before one needs it.
            self._run_nothing()
            return True
        if not self.scheduler.running and not self.scheduler.waiting:
            if self._control.wants_calibration:
                self._control.calibrate(self._measure)
                return True
            if self._unchecked_since is not None and now - self._unchecked_since > _QUIET_SECONDS:
                self.scheduler.check_idle()
                self._unchecked_since = None
        return False

    def _measure(self) -> Mapping[Gear, CostCurve]:
        """What the gears cost now; a request that arrives meanwhile, or an end of the process, interrupts it."""
        s = self._started
        return self._startup.calibrate(
            s.config, s.dtype, s.max_model_len, s.num_blocks,
            is_wanted=lambda: self._control.wants_calibration and not self.stopping,
        )  # fmt: skip

    def _run_nothing(self) -> int:
        """A step without tokens; the generation that the ranks have seen then."""
        control = self._control
        plan = StepPlan(self._ranks.last_step + 1, control.table.latency.name, control.policy.generation)
        return self._ranks.run(plan).generation
