"""Calls to the control port of runtime pods. The only module that knows gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from shiftprotos import contract
from shiftprotos.v1 import control_pb2, control_pb2_grpc

from shiftoperator.errors import RuntimeCallError
from shiftoperator.snapshot import GearState, Load, RuntimeState, SelfCheck
from shiftoperator.spec import Policy

PUSH_SECONDS = 0.5
# A pod answers between two steps, and a step of long prompts takes its time.
STATE_SECONDS = 2.0

T = TypeVar("T")

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
_CHANNEL_OPTIONS = (
    # A pod that starts refuses connections at first: try again soon, not after gRPC's usual seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


@dataclass(frozen=True)
class Endpoint:
    """One pod's control port. The uid tells a pod from a later one with the same address."""

    uid: str
    name: str
    address: str


@dataclass(frozen=True)
class Accepted:
    generation_accepted: int
    generation_applied: int


class RuntimeClient:
    """Keeps one channel per pod: a push must not pay for a new connection."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._channels: dict[Endpoint, grpc.aio.Channel] = {}

    async def get_state(self, endpoint: Endpoint, token: str) -> RuntimeState:
        """Raises RuntimeCallError."""
        request = control_pb2.GetStateRequest()
        call = self._stub(endpoint).GetState(request, timeout=STATE_SECONDS, metadata=_bearer(token))
        return state_from_wire(await _answer(call), self._clock())

    async def set_policy(self, endpoint: Endpoint, token: str, policy: Policy, generation: int) -> Accepted:
        """Raises RuntimeCallError; FAILED_PRECONDITION when the pod accepted a higher generation."""
        request = control_pb2.SetPolicyRequest(policy=policy_to_wire(policy, generation))
        call = self._stub(endpoint).SetPolicy(request, timeout=PUSH_SECONDS, metadata=_bearer(token))
        response = await _answer(call)
        return Accepted(response.generation_accepted, response.generation_applied)

    async def states(self, endpoints: Iterable[Endpoint], token: str) -> dict[str, RuntimeState | RuntimeCallError]:
        """By pod uid, read in parallel."""
        return await _together({e.uid: self.get_state(e, token) for e in endpoints})

    async def push(
        self, endpoints: Iterable[Endpoint], token: str, policy: Policy, generation: int
    ) -> dict[str, Accepted | RuntimeCallError]:
        """By pod uid, sent in parallel."""
        return await _together({e.uid: self.set_policy(e, token, policy, generation) for e in endpoints})

    async def forget(self, uids: set[str]) -> None:
        """Closes the channels of pods that are gone."""
        for endpoint in [e for e in self._channels if e.uid in uids]:
            await self._channels.pop(endpoint).close()

    async def close(self) -> None:
        await self.forget({endpoint.uid for endpoint in self._channels})

    def _stub(self, endpoint: Endpoint) -> Any:
        channel = self._channels.get(endpoint)
        if channel is None:
            # Plaintext inside the cluster; the NetworkPolicy and the token guard the port.
            channel = grpc.aio.insecure_channel(endpoint.address, options=_CHANNEL_OPTIONS)
            self._channels[endpoint] = channel
        return control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]


async def _answer(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise RuntimeCallError(error.code().name, error.details() or "") from error


async def _together(calls: dict[str, Coroutine[Any, Any, T]]) -> dict[str, T | RuntimeCallError]:
    results = await asyncio.gather(*calls.values(), return_exceptions=True)
    answers: dict[str, T | RuntimeCallError] = {}
    for uid, result in zip(calls, results, strict=True):
        if isinstance(result, BaseException) and not isinstance(result, RuntimeCallError):
            raise result
        answers[uid] = result
    return answers


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return ((contract.AUTHORIZATION_METADATA, f"Bearer {token}"),)


def policy_to_wire(policy: Policy, generation: int) -> control_pb2.Policy:
    return control_pb2.Policy(
        mode=_MODES[policy.mode], threshold_tokens=policy.threshold_tokens or 0, generation=generation
    )


def state_from_wire(state: control_pb2.GetStateResponse, read_at: float) -> RuntimeState:
    check = SelfCheck(state.self_check.passed, state.self_check.message) if state.HasField("self_check") else None
    return RuntimeState(
        read_at=read_at,
        ready=state.ready,
        policy=Policy(_MODE_NAMES.get(state.policy.mode, "Auto"), state.policy.threshold_tokens or None),
        generation_accepted=state.generation_accepted,
        generation_applied=state.generation_applied,
        gears=tuple(
            GearState(g.name, g.sequence, g.tensor, g.steps, g.tokens, g.capacity_tokens_per_second)
            for g in state.gears
        ),
        base_gear=state.base_gear,
        threshold_tokens=state.threshold_tokens,
        threshold_source=_SOURCES.get(state.threshold_source, ""),
        crossover_tokens=state.crossover.tokens,
        crossover_reason=state.crossover.reason,
        self_check=check,
        load=_load(state.load),
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
        tpot_p95_seconds=load.tpot_p95_seconds,
        prompt_tokens_per_second=load.prompt_tokens_per_second,
        output_tokens_per_second=load.output_tokens_per_second,
    )
