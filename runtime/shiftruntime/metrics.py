"""What the front end counts itself. What the engine counts is read from its state: server/engine_metrics.py."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from shiftprotos import contract

# From a short prompt on an idle GPU to a long one in a queue.
TTFT_BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TPOT_BUCKETS_SECONDS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
# A refusal costs no step; the promise is 50 ms for half of them and 500 ms for 99 of 100.
REFUSAL_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)

# Every outcome exists from the start, so that a rate over them has no gaps.
OUTCOMES = ("stop", "length", "abort", "cancelled", "invalid", "rejected", "unavailable", "deadline", "error")
REFUSAL_OUTCOMES = ("invalid", "rejected", "unavailable", "deadline")


class RequestMetrics:
    """Counters and histograms of the requests of one pod, in a registry of its own (no global state)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            contract.METRIC_REQUESTS, "Generate calls that ended, by outcome.", ["outcome"], registry=registry
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._ttft = Histogram(
            contract.METRIC_TTFT,
            "Seconds from a call's arrival to its first token.",
            buckets=TTFT_BUCKETS_SECONDS,
            registry=registry,
        )
        self._tpot = Histogram(
            contract.METRIC_TPOT,
            "Mean seconds per token after the first one, one sample per request.",
            buckets=TPOT_BUCKETS_SECONDS,
            registry=registry,
        )
        self._refusals = Histogram(
            contract.METRIC_REFUSAL_SECONDS,
            "Seconds from a call's arrival to its refusal, for calls that were never accepted, by outcome.",
            ["outcome"],
            buckets=REFUSAL_BUCKETS_SECONDS,
            registry=registry,
        )
        for outcome in REFUSAL_OUTCOMES:
            self._refusals.labels(outcome)
        self._startup = Gauge(
            contract.METRIC_STARTUP_SECONDS, "Seconds that a phase of start-up took.", ["phase"], registry=registry
        )

    def ended(self, outcome: str) -> None:
        assert outcome in OUTCOMES, f"{outcome} is no outcome of a request"
        self._requests.labels(outcome).inc()

    def refused(self, outcome: str, seconds: float) -> None:
        self._refusals.labels(outcome).observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def decoded(self, tokens: int, seconds: float) -> None:
        """``tokens`` tokens after the first one took ``seconds``."""
        if tokens > 0:
            self._tpot.observe(seconds / tokens)

    def phase(self, name: str, seconds: float) -> None:
        self._startup.labels(name).set(seconds)
