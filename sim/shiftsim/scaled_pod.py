"""A pod that comes and goes, and what it reports to the autoscaler: the figures of the runtime's GetState."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from shiftcore.gears import GearTable
from shiftcore.scaling import PodLoad

from shiftsim.engine import Engine, EngineOptions
from shiftsim.generation import Generation
from shiftsim.measures import Listener
from shiftsim.work import Executor

RATE_SECONDS = 10.0  # over which the runtime counts tokens
LATENCY_SECONDS = 60.0  # and over which it takes percentiles


class Recent:
    """Values of the last minute."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        self._values.append((now, value))

    def percentile(self, now: float, percent: int) -> float:
        while self._values and self._values[0][0] < now - LATENCY_SECONDS:
            self._values.popleft()
        values = sorted(value for _, value in self._values)
        return values[-(-percent * len(values) // 100) - 1] if values else 0.0


@dataclass(frozen=True)
class _Sample:
    at: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    latency_gear_tokens: int = 0
    tokens: int = 0


@dataclass
class Pod:
    """``ready_seconds`` is in the future while it starts; ``leaving`` gets no more requests."""

    name: str
    ordered_seconds: float
    ready_seconds: float
    executor: Executor
    options: EngineOptions
    listener: Listener
    leaving: bool = False
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.engine = Engine(self.executor, self.options, self)
        self._ttft, self._tpot = Recent(), Recent()
        self._samples = deque([_Sample(self.ready_seconds)])

    def began(self, request: Generation, now: float) -> None:
        self._ttft.add(now, now - request.arrival_seconds)
        self.listener.began(request, now)

    def finished(self, request: Generation, now: float) -> None:
        if request.first_token_seconds is not None and request.num_output > 1:
            self._tpot.add(now, (now - request.first_token_seconds) / (request.num_output - 1))
        self.listener.finished(request, now)

    @property
    def kv_used(self) -> float:
        pool = self.engine.scheduler.pool
        return 1 - pool.num_available / pool.num_blocks

    @property
    def busy(self) -> float:
        """Share of its fullest resource, 1 when requests wait."""
        scheduler = self.engine.scheduler
        if scheduler.waiting:
            return 1.0
        return max(self.kv_used, len(scheduler.running) / scheduler.limits.max_num_seqs)

    def load(self, now: float, percent: int, capacity_of: GearTable, *, latency: bool) -> PodLoad:
        """``latency``: capacity as that of the tp gear, for an autoscaler that knows of no other."""
        scheduler, rates = self.engine.scheduler, self._rates(now)
        curve = capacity_of.costs[capacity_of.latency if latency else capacity_of.base]
        return PodLoad(
            name=self.name,
            measured_at=now,
            prompt_tokens_per_second=rates[0],
            output_tokens_per_second=rates[1],
            waiting_tokens=scheduler.waiting_tokens,
            running_requests=len(scheduler.running),
            waiting_requests=len(scheduler.waiting),
            max_running_requests=scheduler.limits.max_num_seqs,
            oldest_wait_seconds=scheduler.oldest_wait(now),
            kv_used_fraction=self.kv_used,
            ttft_seconds=self._ttft.percentile(now, percent),
            tpot_seconds=self._tpot.percentile(now, percent),
            capacity_tokens_per_second=curve.capacity_tokens_per_second(),
            step_seconds=curve.points[0].median_seconds,
            throughput_share=rates[2] if len(capacity_of.gears) > 1 and not latency else 1.0,
        )

    def _rates(self, now: float) -> tuple[float, float, float]:
        """Prompt and output tokens per second, and the share of the tokens that did not run in the tp gear."""
        engine, table = self.engine, self.executor.table
        slow = sum(use.tokens for gear, use in engine.use.items() if gear == table.latency)
        every = sum(use.tokens for use in engine.use.values())
        last = _Sample(now, engine.prompt_tokens, engine.output_tokens, slow, every)
        self._samples.append(last)
        while len(self._samples) > 2 and now - self._samples[1].at >= RATE_SECONDS:
            self._samples.popleft()
        first = self._samples[0]
        made = last.tokens - first.tokens
        return (
            (last.prompt_tokens - first.prompt_tokens) / RATE_SECONDS,
            (last.output_tokens - first.output_tokens) / RATE_SECONDS,
            1 - (last.latency_gear_tokens - first.latency_gear_tokens) / made if made else 1.0,
        )
