"""The lines a person reads when a pod is ready, or will not be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from shiftruntime.engine.messages import EngineState, Ready
from shiftruntime.server.options import ServeOptions


class Failure(Protocol):
    reason: str
    message: str


class PortNumbers(Protocol):
    @property
    def inference(self) -> int: ...
    @property
    def control(self) -> int: ...
    @property
    def ops(self) -> int: ...
    @property
    def openai(self) -> int | None: ...


def failure_line(failure: Failure) -> str:
    return f"shift-runtime failed: {failure.reason}: {failure.message}"


def ready_lines(
    options: ServeOptions, ready: Ready, state: EngineState, ports: PortNumbers
) -> Iterator[tuple[str, dict[str, object]]]:
    """(sentence, the same as fields): the gears, how they are chosen, and the final line."""
    for gear in state.gears:
        costs = ", ".join(f"{point.tokens}: {point.median_seconds * 1e3:.1f} ms" for point in gear.costs)
        yield (
            f"gear {gear.name}: {costs or 'not measured'}",
            {"gear": gear.name, "capacity_tokens_per_second": round(gear.capacity_tokens_per_second, 1)},
        )
    yield f"crossover: {_crossover(state)}", {"crossover": state.crossover_tokens, "reason": state.crossover_reason}
    if state.self_check is not None:
        verdict = "passed" if state.self_check.passed else "failed"
        yield f"self-check {verdict}: {state.self_check.message}", {"passed": state.self_check.passed}
    gears = ", ".join(ready.gears)
    yield (
        f"ready: {options.served_name} ({ready.architecture}, {ready.dtype}, {options.engine.ranks} ranks); "
        f"gears {gears}; {_threshold(state)}; at most {ready.max_model_len} tokens per request; "
        f"inference on {options.host}:{ports.inference}, control {ports.control}, ops {ports.ops}, "
        f"OpenAI HTTP {'none' if ports.openai is None else ports.openai}",
        {
            "served_name": options.served_name,
            "gears": list(ready.gears),
            "threshold_tokens": state.threshold_tokens,
            "threshold_source": state.threshold_source,
            "port": ports.inference,
            "control_port": ports.control,
            "ops_port": ports.ops,
            "openai_port": ports.openai,
        },
    )


def _crossover(state: EngineState) -> str:
    if state.crossover_tokens is not None:
        return f"{state.crossover_tokens} tokens per step"
    return f"none ({state.crossover_reason}): {state.crossover_message}"


def _threshold(state: EngineState) -> str:
    if state.threshold_tokens is None:
        return f"pinned by policy {state.policy.gear or state.policy.mode}"
    return f"threshold {state.threshold_tokens} tokens (source: {state.threshold_source})"
