"""A pod of a service whose size changes: its start, its engine, and what it tells the autoscaler."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from shiftcore.layout import Gear
from shiftcore.loads import LoadWindows, tokens_shifted
from shiftcore.scaling import PodLoad

from shiftsim.engine import Engine, EngineOptions
from shiftsim.errors import UserError
from shiftsim.generation import Generation
from shiftsim.measures import Measures
from shiftsim.slo import tpot, ttft
from shiftsim.work import Executor

SHARE_SECONDS = 10.0  # over which the share of tokens per gear is taken, as the operator does


@dataclass(frozen=True)
class Start:
    """What a new pod takes, in seconds: until it has a node, until its weights are there, until it serves."""

    schedule_seconds: float = 10.0
    load_seconds: float = 90.0
    warm_up_seconds: float = 20.0

    def __post_init__(self) -> None:
        if min(self.schedule_seconds, self.load_seconds, self.warm_up_seconds) < 0:
            raise UserError(f"the start of a pod, {self}, has a time below 0; give seconds from 0 on")

    @property
    def total_seconds(self) -> float:
        return self.schedule_seconds + self.load_seconds + self.warm_up_seconds


class PodMeasures(Measures):
    """Of one pod: its sliding windows. All that ends is counted in ``total`` too."""

    def __init__(self, total: Measures) -> None:
        super().__init__()
        self.windows = LoadWindows()
        self._total = total

    def began(self, request: Generation, now: float) -> None:
        self.windows.ttft_seconds.add(now, ttft(request))

    def finished(self, request: Generation, now: float) -> None:
        if request.num_output > 1:
            self.windows.tpot_seconds.add(now, tpot(request, now))
        self.output_tokens += request.num_output
        self._total.finished(request, now)


class Pod:
    """``ready_seconds``: when it serves; it holds its GPUs from ``held_seconds`` on."""

    def __init__(
        self, name: str, executor: Executor, options: EngineOptions, total: Measures, ordered: float, start: Start
    ) -> None:
        self.name = name
        self.ordered_seconds = ordered
        self.held_seconds = ordered + start.schedule_seconds
        self.ready_seconds = ordered + start.total_seconds
        self.drained_since: float | None = None
        self._measures = PodMeasures(total)
        self.engine = Engine(executor, options, self._measures)
        self._slots = options.max_num_seqs
        table = executor.table
        self._gears = table.gears if options.policy.gear is None else (Gear.parse(options.policy.gear),)
        self._curve = table.costs[table.base if options.policy.gear is None else self._gears[0]]
        self._made = 0
        self._observed = self.ready_seconds
        self._samples: deque[tuple[float, dict[Gear, int]]] = deque()

    def submit(self, request: Generation, now: float) -> str:
        """The reason when it can never run here, else nothing."""
        refused = self.engine.submit(request, now)
        if not refused:
            self._measures.windows.prompt_tokens.add(now, len(request.prompt))
        return refused

    def load(self, now: float, percentile: int) -> PodLoad:
        """What a runtime reports; to be asked once at each moment at which somebody looks."""
        self._look(now)
        scheduler, windows = self.engine.scheduler, self._measures.windows
        pool = scheduler.pool
        return PodLoad(
            name=self.name,
            measured_at=now,
            prompt_tokens_per_second=windows.prompt_tokens.rate(now),
            output_tokens_per_second=windows.output_tokens.rate(now),
            waiting_tokens=scheduler.waiting_tokens,
            running_requests=len(scheduler.running),
            waiting_requests=len(scheduler.waiting),
            max_running_requests=self._slots,
            oldest_wait_seconds=scheduler.oldest_wait(now),
            kv_used_fraction=1.0 - pool.num_available / pool.num_blocks,
            ttft_seconds=windows.ttft_seconds.percentiles(now, percentile)[0],
            tpot_seconds=windows.tpot_seconds.percentiles(now, percentile)[0],
            capacity_tokens_per_second=self._curve.capacity_tokens_per_second(),
            step_seconds=self._curve.points[0].median_seconds,
            throughput_share=self._shifted(),
        )

    def _look(self, now: float) -> None:
        scheduler = self.engine.scheduler
        here = sum(r.num_output for r in scheduler.running) + sum(r.num_output for r in scheduler.waiting)
        made = self._measures.output_tokens + here
        # In the middle of the time in which they were made, so that a window counts neither more nor less than its own.
        self._measures.windows.output_tokens.add((self._observed + now) / 2, made - self._made)
        self._made, self._observed = made, now
        self._samples.append((now, {gear: use.tokens for gear, use in self.engine.use.items()}))
        while len(self._samples) > 2 and now - self._samples[1][0] >= SHARE_SECONDS:
            self._samples.popleft()

    def _shifted(self) -> float:
        before, after = self._samples[0][1], self._samples[-1][1]
        made = {gear: tokens - before.get(gear, 0) for gear, tokens in after.items()}
        in_tp = sum(tokens for gear, tokens in made.items() if gear.sequence == 1)
        return tokens_shifted(in_tp, sum(made.values()), len(self._gears))
