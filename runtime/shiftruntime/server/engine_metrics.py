"""The engine's counters as Prometheus metrics, from its last state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from shiftprotos import contract

from shiftruntime.engine.messages import STEP_BUCKETS_SECONDS, EngineState


class EngineCollector(Collector):
    """Exposes the last state that the front end read, at most a second old; nothing before the engine is ready."""

    def __init__(self, state: Callable[[], EngineState | None]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        if state is None:
            return
        yield from _gears(state)
        yield CounterMetricFamily(contract.METRIC_SHIFTS, "Steps in another gear than the step before.", state.shifts)
        yield from _load(state)
        generation = GaugeMetricFamily(
            contract.METRIC_POLICY_GENERATION,
            "Generation of the policy: accepted, and applied by every rank.",
            labels=["state"],
        )
        generation.add_metric(["accepted"], state.policy.generation)
        generation.add_metric(["applied"], state.generation_applied)
        yield generation


def _gears(state: EngineState) -> Iterator[Metric]:
    steps = CounterMetricFamily(contract.METRIC_STEPS, "Forward steps.", labels=["gear"])
    tokens = CounterMetricFamily(contract.METRIC_STEP_TOKENS, "Tokens of forward steps.", labels=["gear"])
    seconds = HistogramMetricFamily(contract.METRIC_STEP_SECONDS, "Seconds of forward steps.", labels=["gear"])
    for gear in state.gears:
        steps.add_metric([gear.name], gear.steps)
        tokens.add_metric([gear.name], gear.tokens)
        seconds.add_metric([gear.name], _cumulative(gear.step_counts), gear.busy_seconds)
    yield from (steps, tokens, seconds)


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Buckets as Prometheus wants them: steps of at most so many seconds."""
    bounds = [*map(str, STEP_BUCKETS_SECONDS), "+Inf"]
    return list(zip(bounds, accumulate(counts), strict=True))


def _load(state: EngineState) -> Iterator[Metric]:
    load = state.load
    yield GaugeMetricFamily(contract.METRIC_RUNNING, "Requests that run.", load.running_requests)
    yield GaugeMetricFamily(contract.METRIC_WAITING, "Requests that wait.", load.waiting_requests)
    yield GaugeMetricFamily(contract.METRIC_KV_FREE, "Blocks of the KV cache that can be taken.", load.kv_blocks_free)
    yield GaugeMetricFamily(
        contract.METRIC_KV_CACHED,
        "Of these, blocks whose prefix can be hit until they are taken.",
        load.kv_blocks_cached,
    )
    yield CounterMetricFamily(
        contract.METRIC_PREFIX_QUERIED, "Prompt tokens looked up in the prefix cache.", load.prefix_queried_tokens
    )
    yield CounterMetricFamily(
        contract.METRIC_PREFIX_HIT, "Prompt tokens found in the prefix cache.", load.prefix_hit_tokens
    )
    yield CounterMetricFamily(
        contract.METRIC_PREEMPTIONS, "Requests that gave up their blocks and computed them again.", load.preemptions
    )
    yield GaugeMetricFamily(contract.METRIC_KV_TOTAL, "Blocks of the KV cache.", load.kv_blocks_total)
