"""A stand-in for the runtime of one pod: a real gRPC server that keeps the contract of Control, and no model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from shiftprotos import contract
from shiftprotos.v1 import control_pb2, control_pb2_grpc, inference_pb2


def idle() -> inference_pb2.Load:
    return inference_pb2.Load(max_running_requests=16, kv_blocks_total=100, kv_blocks_free=100)


@dataclass
class Runtime(control_pb2_grpc.ControlServicer):  # type: ignore[misc]
    """Two ranks, two gears. `load` and `ready` may be changed at any time; `pushes` are the accepted generations with
    the time.monotonic() of their arrival."""

    token: str
    ready: bool = True
    draining: bool = False
    silent: bool = False  # takes calls and answers none
    load: inference_pb2.Load = field(default_factory=idle)
    policy: control_pb2.Policy = field(default_factory=lambda: control_pb2.Policy(mode=control_pb2.POLICY_MODE_AUTO))
    pushes: list[tuple[int, float]] = field(default_factory=list)
    drains: int = 0
    conflicts: int = 0  # pushes of another policy under the generation that was accepted

    async def GetState(self, request: Any, context: Any) -> Any:
        await self._admit(context)
        return control_pb2.GetStateResponse(
            ready=self.ready and not self.draining,
            draining=self.draining,
            policy=self.policy,
            generation_accepted=self.policy.generation,
            generation_applied=self.policy.generation,
            gears=[_gear("tp2", 1, 2, 400.0), _gear("sp2", 2, 1, 1000.0)],
            base_gear="sp2",
            crossover=control_pb2.Crossover(tokens=96),
            threshold_tokens=self.policy.threshold_tokens or 96,
            threshold_source=control_pb2.THRESHOLD_SOURCE_POLICY
            if self.policy.threshold_tokens
            else control_pb2.THRESHOLD_SOURCE_CALIBRATION,
            load=self.load,
            phases=[control_pb2.Phase(name=name, seconds=1.0, done=True) for name in contract.PHASES],
            self_check=control_pb2.SelfCheck(passed=True, tolerance=1e-3, message="gears agree"),
            version="0.1.0",
            ranks=2,
            dtype="float32",
        )

    async def SetPolicy(self, request: Any, context: Any) -> Any:
        await self._admit(context)
        asked, known = request.policy, self.policy
        if asked.generation < known.generation:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"generation {known.generation} was accepted")
        if asked.generation == known.generation and asked != known and known.generation > 0:
            self.conflicts += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"another policy under generation {asked.generation}")
        self.policy = asked
        self.pushes.append((asked.generation, time.monotonic()))
        return control_pb2.SetPolicyResponse(generation_accepted=asked.generation, generation_applied=asked.generation)

    async def Drain(self, request: Any, context: Any) -> Any:
        await self._admit(context)
        self.draining = True
        self.drains += 1
        return control_pb2.DrainResponse(
            running_requests=self.load.running_requests, waiting_requests=self.load.waiting_requests
        )

    async def _admit(self, context: Any) -> None:
        if self.silent:
            await asyncio.Event().wait()
        said = dict(context.invocation_metadata()).get(contract.AUTHORIZATION_METADATA)
        if said != f"Bearer {self.token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")


def _gear(name: str, sequence: int, tensor: int, tokens_per_second: float) -> control_pb2.Gear:
    costs = [
        control_pb2.CostPoint(tokens=n, median_seconds=0.001 + n / tokens_per_second, samples=3) for n in (1, 64, 512)
    ]
    return control_pb2.Gear(
        name=name, sequence=sequence, tensor=tensor, allowed=True, costs=costs,
        capacity_tokens_per_second=tokens_per_second,
    )  # fmt: skip


async def listen(runtime: Runtime, address: str, mounted: Mapping[str, bytes]) -> grpc.aio.Server:
    """Serves Control at the port that a pod has it on; `mounted` is what is in its control Secret."""
    server = grpc.aio.server()
    control_pb2_grpc.add_ControlServicer_to_server(runtime, server)
    target = f"{address}:{contract.CONTROL_PORT}"
    if contract.CONTROL_TLS_KEY in mounted:
        pair = (mounted[contract.CONTROL_TLS_KEY], mounted[contract.CONTROL_TLS_CERTIFICATE])
        authorities = mounted[contract.CONTROL_TLS_AUTHORITIES]
        server.add_secure_port(target, grpc.ssl_server_credentials([pair], authorities, require_client_auth=True))
    else:
        server.add_insecure_port(target)
    await server.start()
    return server
