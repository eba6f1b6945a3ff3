"""Between the engine's state and shiftparallel.v1: pure conversions."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from shiftcore.gears import ThresholdSource
from shiftcore.policy import Mode, Policy, PolicyError
from shiftprotos.v1 import control_pb2 as control
from shiftprotos.v1 import inference_pb2 as inference

from shiftruntime.engine.messages import EngineState, GearState, LoadState, PhaseUpdate, SelfCheckState
from shiftruntime.server.refusal import Refusal

_MODES = {
    Mode.AUTO: control.POLICY_MODE_AUTO,
    Mode.LATENCY: control.POLICY_MODE_LATENCY,
    Mode.THROUGHPUT: control.POLICY_MODE_THROUGHPUT,
}
# An unset mode is Auto: a policy that only pins a gear or sets a threshold need not name one.
_MODES_FROM_WIRE = {wire: mode for mode, wire in _MODES.items()} | {control.POLICY_MODE_UNSPECIFIED: Mode.AUTO}
_SOURCES = {
    ThresholdSource.POLICY: control.THRESHOLD_SOURCE_POLICY,
    ThresholdSource.CALIBRATION: control.THRESHOLD_SOURCE_CALIBRATION,
    ThresholdSource.DEFAULT: control.THRESHOLD_SOURCE_DEFAULT,
    ThresholdSource.PINNED: control.THRESHOLD_SOURCE_PINNED,
}


def policy_from_wire(message: control.Policy) -> Policy:
    """Raises Refusal (INVALID_ARGUMENT) that names the value."""
    mode = _MODES_FROM_WIRE.get(message.mode)
    if mode is None:
        raise _invalid_policy(f"policy mode {message.mode} is unknown; use AUTO, LATENCY or THROUGHPUT")
    try:
        return Policy(
            mode,
            message.threshold_tokens or None,
            message.gear or None,
            message.generation,
            message.min_threshold_tokens or None,
            message.max_threshold_tokens or None,
        )
    except PolicyError as error:
        raise _invalid_policy(str(error)) from error


def policy_to_wire(policy: Policy) -> control.Policy:
    return control.Policy(
        mode=_MODES[policy.mode],
        threshold_tokens=policy.threshold_tokens or 0,
        generation=policy.generation,
        gear=policy.gear or "",
        min_threshold_tokens=policy.min_threshold_tokens or 0,
        max_threshold_tokens=policy.max_threshold_tokens or 0,
    )


def gears_to_wire(state: EngineState) -> list[control.Gear]:
    return [_gear(gear) for gear in state.gears]


def crossover_to_wire(state: EngineState) -> control.Crossover:
    return control.Crossover(
        tokens=state.crossover_tokens or 0, reason=state.crossover_reason, message=state.crossover_message
    )


def load_to_wire(load: LoadState) -> inference.Load:
    return inference.Load(
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        waiting_tokens=load.waiting_tokens,
        kv_blocks_total=load.kv_blocks_total,
        kv_blocks_free=load.kv_blocks_free,
        oldest_wait_seconds=load.oldest_wait_seconds,
        tokens_per_second=load.tokens_per_second,
        busy_fraction=load.busy_fraction,
        max_running_requests=load.max_running_requests,
        ttft_p95_seconds=load.ttft_p95_seconds,
        tpot_p95_seconds=load.tpot_p95_seconds,
        prompt_tokens_per_second=load.prompt_tokens_per_second,
        output_tokens_per_second=load.output_tokens_per_second,
        kv_blocks_cached=load.kv_blocks_cached,
        prefix_queried_tokens=load.prefix_queried_tokens,
        prefix_hit_tokens=load.prefix_hit_tokens,
        preemptions=load.preemptions,
        ttft_p50_seconds=load.ttft_p50_seconds,
        ttft_p90_seconds=load.ttft_p90_seconds,
        ttft_p99_seconds=load.ttft_p99_seconds,
        tpot_p50_seconds=load.tpot_p50_seconds,
        tpot_p90_seconds=load.tpot_p90_seconds,
        tpot_p99_seconds=load.tpot_p99_seconds,
    )


def phases_to_wire(phases: Iterable[PhaseUpdate]) -> list[control.Phase]:
    return [
        control.Phase(
            name=phase.name,
            seconds=phase.seconds,
            bytes=phase.done_bytes,
            total_bytes=phase.total_bytes,
            done=phase.done,
        )
        for phase in phases
    ]


def fill_state(response: control.GetStateResponse, state: EngineState) -> None:
    """Everything of GetState that the engine knows."""
    response.policy.CopyFrom(policy_to_wire(state.policy))
    response.generation_accepted = state.policy.generation
    response.generation_applied = state.generation_applied
    response.gears.extend(gears_to_wire(state))
    response.base_gear = state.base_gear
    response.crossover.CopyFrom(crossover_to_wire(state))
    response.threshold_tokens = state.threshold_tokens or 0
    response.threshold_source = _SOURCES[ThresholdSource(state.threshold_source)]
    response.shifts = state.shifts
    response.load.CopyFrom(load_to_wire(state.load))
    if state.self_check is not None:
        response.self_check.CopyFrom(_self_check(state.self_check))


def _gear(gear: GearState) -> control.Gear:
    return control.Gear(
        name=gear.name,
        sequence=gear.sequence,
        tensor=gear.tensor,
        allowed=True,  # the engine only has gears that the base gear allows
        costs=[
            control.CostPoint(
                tokens=point.tokens,
                median_seconds=point.median_seconds,
                spread_seconds=point.spread_seconds,
                samples=point.samples,
            )
            for point in gear.costs
        ],
        steps=gear.steps,
        tokens=gear.tokens,
        busy_seconds=gear.busy_seconds,
        capacity_tokens_per_second=gear.capacity_tokens_per_second,
    )


def _self_check(check: SelfCheckState) -> control.SelfCheck:
    return control.SelfCheck(
        passed=check.passed,
        max_logprob_difference=check.max_logprob_difference,
        tolerance=check.tolerance,
        gears=check.gears,
        message=check.message,
    )


def _invalid_policy(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "InvalidPolicy", message)
