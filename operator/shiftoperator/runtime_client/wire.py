"""Policies and states as they go over the wire, and back."""

from __future__ import annotations

from typing import Any

from shiftprotos.v1 import control_pb2

from shiftoperator.snapshot import GearState, Load, Phase, RuntimeState, SelfCheck
from shiftoperator.spec import PERCENTILES, Policy

_MODES = {
    "Auto": control_pb2.POLICY_MODE_AUTO,
    "Latency": control_pb2.POLICY_MODE_LATENCY,
    "Throughput": control_pb2.POLICY_MODE_THROUGHPUT,
}
_MODE_NAMES = {value: name for name, value in _MODES.items()}
_SOURCES = {
    control_pb2.THRESHOLD_SOURCE_POLICY: "Policy",
    control_pb2.THRESHOLD_SOURCE_CALIBRATION: "Calibration",
    control_pb2.THRESHOLD_SOURCE_DEFAULT: "Default",
    control_pb2.THRESHOLD_SOURCE_PINNED: "Pinned",
}


def policy_to_wire(policy: Policy, generation: int) -> control_pb2.Policy:
    return control_pb2.Policy(
        mode=_MODES[policy.mode], threshold_tokens=policy.threshold_tokens or 0, generation=generation
    )


def state_from_wire(state: control_pb2.GetStateResponse, read_at: float) -> RuntimeState:
    check = SelfCheck(state.self_check.passed, state.self_check.message) if state.HasField("self_check") else None
    return RuntimeState(
        read_at=read_at,
        ready=state.ready,
        draining=state.draining,
        policy=Policy(_MODE_NAMES.get(state.policy.mode, "Auto"), state.policy.threshold_tokens or None),
        generation_accepted=state.generation_accepted,
        generation_applied=state.generation_applied,
        gears=tuple(
            GearState(
                g.name,
                g.sequence,
                g.tensor,
                g.steps,
                g.tokens,
                g.capacity_tokens_per_second,
                step_seconds=g.costs[0].median_seconds if g.costs else 0.0,
            )
            for g in state.gears
        ),
        base_gear=state.base_gear,
        threshold_tokens=state.threshold_tokens,
        threshold_source=_SOURCES.get(state.threshold_source, ""),
        crossover_tokens=state.crossover.tokens,
        crossover_reason=state.crossover.reason,
        self_check=check,
        load=_load(state.load),
        phases=tuple(Phase(p.name, p.seconds, p.bytes, p.done, p.total_bytes) for p in state.phases),
        dtype=state.dtype,
        version=state.version,
    )


def _load(load: Any) -> Load:
    return Load(
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        waiting_tokens=load.waiting_tokens,
        max_running_requests=load.max_running_requests,
        kv_blocks_total=load.kv_blocks_total,
        kv_blocks_free=load.kv_blocks_free,
        oldest_wait_seconds=load.oldest_wait_seconds,
        ttft_seconds={percent: getattr(load, f"ttft_p{percent}_seconds") for percent in PERCENTILES},
        tpot_seconds={percent: getattr(load, f"tpot_p{percent}_seconds") for percent in PERCENTILES},
        prompt_tokens_per_second=load.prompt_tokens_per_second,
        output_tokens_per_second=load.output_tokens_per_second,
    )
