"""The adaptive threshold on a modelled pod, step by step: what it mends, and what it must not spoil.

The pod batches as the engine does: every step has one token of each running request and a chunk of prompts up to the
budget, in the tp gear up to the threshold. tp costs 10 ms and 40 µs per token, the base gear 20 ms and 27 µs, about
the published ratio of latency and throughput; they cross at 770 tokens.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from shiftcore.adaptive import Memory, Seen, Settings, adapt

BUDGET = 2048
CROSSOVER = 770
TICK_SECONDS = 5.0
MINUTE = 60.0


@dataclass
class Request:
    arrived: float
    prompt: int
    output: int
    first_at: float = 0.0
    made: int = 0


@dataclass
class Pod:
    threshold: int
    now: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    ttfts: deque[tuple[float, float]] = field(default_factory=deque)
    tpots: deque[tuple[float, float]] = field(default_factory=deque)

    def step(self) -> None:
        room, chunk, started = BUDGET - len(self.running), 0, []
        while self.waiting and chunk < room:
            request = self.waiting[0]
            take = min(request.prompt, room - chunk)
            request.prompt -= take
            chunk += take
            if request.prompt == 0:
                started.append(self.waiting.popleft())
        tokens = len(self.running) + chunk
        self.now += 0.010 + 40e-6 * tokens if tokens <= self.threshold else 0.020 + 27e-6 * tokens
        for request in self.running:
            request.made += 1
        for request in started:
            request.first_at, request.made = self.now, 1
            self.ttfts.append((self.now, self.now - request.arrived))
        self._finish([*self.running, *started])

    def _finish(self, requests: list[Request]) -> None:
        self.running = [r for r in requests if r.made < r.output]
        for r in requests:
            if r.made >= r.output:
                self.tpots.append((self.now, (self.now - r.first_at) / max(1, r.output - 1)))

    def measured(self, start: int) -> Seen:
        """The 95th percentiles of the last minute; a request that waits counts with its wait so far."""
        waits = [self.now - r.arrived for r in self.waiting]
        return Seen(start, _p95(self.ttfts, self.now, waits), _p95(self.tpots, self.now, []))


def _p95(samples: deque[tuple[float, float]], now: float, more: list[float]) -> float:
    while samples and samples[0][0] < now - MINUTE:
        samples.popleft()
    values = sorted([value for _, value in samples] + more)
    return values[int(0.95 * (len(values) - 1))] if values else 0.0


@dataclass(frozen=True)
class Outcome:
    missed: float  # share of the time in which a target is missed
    moves: int
    threshold: int


def simulate(start: int, rate: float, prompt: int, output: int, *, adaptive: bool, tpot: float, ttft: float) -> Outcome:
    """An hour of requests at `rate` per second."""
    rng, pod = random.Random(3), Pod(start)
    settings, memory = Settings(ttft, tpot, min_tokens=8, max_tokens=8192), Memory()
    arrival, tick, missed, ticks, moves = rng.expovariate(rate), TICK_SECONDS, 0, 0, 0
    while pod.now < 3600:
        while arrival <= pod.now:
            pod.waiting.append(Request(arrival, rng.randint(prompt // 2, prompt * 3 // 2), output))
            arrival += rng.expovariate(rate)
        if not pod.waiting and not pod.running:
            pod.now = arrival
        else:
            pod.step()
        if pod.now >= tick:
            tick = pod.now + TICK_SECONDS
            seen = pod.measured(start)
            ticks += 1
            missed += seen.ttft_seconds > ttft or seen.tpot_seconds > tpot
            advice, memory = adapt(settings, seen, pod.now, memory)
            if adaptive:
                pod.threshold = advice.tokens or start
                moves += advice.moved
            else:
                memory = Memory()
    return Outcome(missed / ticks, moves, pod.threshold)


def compare(start: int, **traffic: float) -> tuple[Outcome, Outcome]:
    """With the threshold that the loop finds, and without the loop."""
    found = simulate(start, adaptive=True, **traffic)  # type: ignore[arg-type]
    return found, simulate(start, adaptive=False, **traffic)  # type: ignore[arg-type]


PROMPTS = {"rate": 9.0, "prompt": 2500, "output": 60, "tpot": 0.25, "ttft": 2.0}
DECODES = {"rate": 2.0, "prompt": 200, "output": 250, "tpot": 0.020, "ttft": 1.0}


def test_a_threshold_far_too_high_drowns_in_prompts_and_is_brought_down() -> None:
    adaptive, fixed = compare(8192, **PROMPTS)
    assert fixed.missed > 0.9
    assert adaptive.missed < 0.5 * fixed.missed, (adaptive, fixed)
    assert adaptive.threshold < BUDGET


def test_a_threshold_far_too_low_makes_output_slow_and_is_brought_up() -> None:
    adaptive, fixed = compare(4, **DECODES)
    assert fixed.missed > 0.5
    assert adaptive.missed < 0.5 * fixed.missed, (adaptive, fixed)


def test_at_the_crossover_nothing_is_gained_and_nothing_is_lost() -> None:
    """The gear of the least step time is the best for both targets: with a right table there is nothing to mend."""
    for traffic in (PROMPTS, DECODES):
        adaptive, fixed = compare(CROSSOVER, **traffic)
        assert adaptive.missed <= fixed.missed + 0.03, (adaptive, fixed)
