"""The metrics of one pod under the names that vLLM uses, so that its dashboards and autoscaling rules work as they are.

They say what ours say; each is observed where ours is. Only what we can measure is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shiftruntime.engine.messages import EngineState, Finish
from shiftruntime.metrics import TPOT_BUCKETS_SECONDS, TTFT_BUCKETS_SECONDS
from shiftruntime.server.request import Journey, Usage

_LATENCY_BUCKETS_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_FINISHED = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.ABORT: "abort"}


class VllmMetrics:
    """What the front end counts; ``model_name`` labels everything, as there."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"vllm:{name}", text, ["model_name"], buckets=buckets, registry=registry)
            return made.labels(model_name)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, ["model_name"], registry=registry).labels(model_name)

        self._ttft = histogram("time_to_first_token_seconds", "Seconds to the first token.", TTFT_BUCKETS_SECONDS)
        self._gap = histogram(
            "inter_token_latency_seconds", "Seconds between two tokens of a request.", TPOT_BUCKETS_SECONDS
        )
        self._tpot = histogram(
            "request_time_per_output_token_seconds",
            "Mean seconds per token after the first one, one sample per request.",
            TPOT_BUCKETS_SECONDS,
        )
        self._latency = histogram(
            "e2e_request_latency_seconds", "Seconds from arrival to the last token.", _LATENCY_BUCKETS_SECONDS
        )
        self._queue = histogram(
            "request_queue_time_seconds", "Seconds that a request waited for its first step.", _LATENCY_BUCKETS_SECONDS
        )
        self._prompt = counter("prompt_tokens_total", "Prompt tokens of finished requests.")
        self._generated = counter("generation_tokens_total", "Tokens generated.")
        success = Counter(
            "vllm:request_success_total", "Finished requests.", ["model_name", "finished_reason"], registry=registry
        )
        self._success = {finish: success.labels(model_name, word) for finish, word in _FINISHED.items()}

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def tokens(self, count: int, seconds: float | None) -> None:
        """``count`` new tokens of a request, ``seconds`` after the ones before; None: they are the first."""
        self._generated.inc(count)
        if seconds is not None:
            for _ in range(count):
                self._gap.observe(seconds / count)

    def finished(
        self, finish: Finish, usage: Usage, journey: Journey | None, seconds: float, decode_seconds: float | None
    ) -> None:
        """A choice ended ``seconds`` after its arrival, ``decode_seconds`` after its first token."""
        self._success[finish].inc()
        self._latency.observe(seconds)
        self._prompt.inc(usage.prompt_tokens)
        if decode_seconds is not None and usage.completion_tokens > 1:
            self._tpot.observe(decode_seconds / (usage.completion_tokens - 1))
        if journey is not None:
            self._queue.observe(journey.queue_seconds)


class VllmEngineCollector(Collector):
    """What the engine counts, from the last state that the front end read; nothing before the engine is ready."""

    def __init__(self, state: Callable[[], EngineState | None], model_name: str) -> None:
        self._state = state
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        if state is None:
            return
        load = state.load
        used = 1.0 - load.kv_blocks_free / load.kv_blocks_total if load.kv_blocks_total else 0.0
        for name, text, value in (
            ("num_requests_running", "Requests that run.", load.running_requests),
            ("num_requests_waiting", "Requests that wait.", load.waiting_requests),
            ("kv_cache_usage_perc", "Used share of the KV cache; 1 is all of it.", used),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        for name, text, count in (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", load.prefix_queried_tokens),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", load.prefix_hit_tokens),
            ("num_preemptions", "Requests that gave up their blocks and computed them again.", load.preemptions),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            counter.add_metric([self._model_name], count)
            yield counter
