"""Against a real gRPC server in this process that keeps the contract of Control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from shiftoperator.errors import RuntimeCallError
from shiftoperator.runtime_client import Accepted, Endpoint, RuntimeClient
from shiftoperator.snapshot import Access, Phase, RuntimeState
from shiftoperator.spec import Policy
from shiftprotos.v1 import control_pb2, control_pb2_grpc, inference_pb2

TOKEN = "t" * 40
ACCESS = Access(TOKEN)


class FakeControl(control_pb2_grpc.ControlServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.policy = control_pb2.Policy(mode=control_pb2.POLICY_MODE_AUTO)
        self.delay_seconds = 0.0
        self.calls = 0
        self.draining = False

    async def _admit(self, context: Any) -> None:
        self.calls += 1
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")
        await asyncio.sleep(self.delay_seconds)

    async def GetState(self, request: Any, context: Any) -> Any:
        await self._admit(context)
        return control_pb2.GetStateResponse(
            ready=True,
            policy=self.policy,
            generation_accepted=self.policy.generation,
            generation_applied=self.policy.generation,
            gears=[
                control_pb2.Gear(
                    name="sp2",
                    sequence=2,
                    tensor=1,
                    steps=3,
                    capacity_tokens_per_second=99.0,
                    costs=[control_pb2.CostPoint(tokens=1, median_seconds=0.05, samples=3)],
                )
            ],
            draining=self.draining,
            base_gear="sp2",
            crossover=control_pb2.Crossover(reason="NoCrossover"),
            threshold_tokens=256,
            threshold_source=control_pb2.THRESHOLD_SOURCE_DEFAULT,
            self_check=control_pb2.SelfCheck(passed=True, message="ok"),
            load=inference_pb2.Load(waiting_requests=2, oldest_wait_seconds=1.5, ttft_p95_seconds=0.7),
            phases=[control_pb2.Phase(name="load", seconds=2.5, bytes=70, done=True)],
            dtype="bfloat16",
            version="0.1.0",
        )

    async def Drain(self, request: Any, context: Any) -> Any:
        await self._admit(context)
        self.draining = True
        return control_pb2.DrainResponse(running_requests=1)

    async def SetPolicy(self, request: Any, context: Any) -> Any:
        await self._admit(context)
        if request.policy.generation < self.policy.generation:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{self.policy.generation} was accepted")
        self.policy = request.policy
        generation = request.policy.generation
        return control_pb2.SetPolicyResponse(generation_accepted=generation, generation_applied=generation)


class Pod:
    def __init__(self, control: FakeControl, endpoint: Endpoint) -> None:
        self.control, self.endpoint = control, endpoint


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    control, server = FakeControl(), grpc.aio.server()
    control_pb2_grpc.add_ControlServicer_to_server(control, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Pod(control, Endpoint("u1", "p1", f"127.0.0.1:{port}"))
    await server.stop(None)


@pytest.fixture
async def client() -> AsyncIterator[RuntimeClient]:
    client = RuntimeClient(clock=lambda: 7.0)
    yield client
    await client.close()


async def next_state(pod: Pod, client: RuntimeClient) -> RuntimeState:
    """Of a pod that may have been silent, and is not waited for then."""
    for _ in range(400):
        if answers := await client.states([pod.endpoint], ACCESS):
            break
        await asyncio.sleep(0.05)
    answer = answers["u1"]
    assert isinstance(answer, RuntimeState)
    return answer


async def test_state(pod: Pod, client: RuntimeClient) -> None:
    state = await client.get_state(pod.endpoint, ACCESS)
    assert (state.read_at, state.base_gear, state.threshold_source) == (7.0, "sp2", "Default")
    assert (state.crossover_reason, state.policy) == ("NoCrossover", Policy("Auto", None))
    assert (state.gears[0].capacity_tokens_per_second, state.gears[0].step_seconds) == (99.0, 0.05)
    assert state.self_check is not None
    assert state.self_check.passed
    assert (state.load.waiting_requests, state.load.oldest_wait_seconds) == (2, 1.5)
    assert (state.load.ttft_seconds, state.draining) == ({50: 0.0, 90: 0.0, 95: 0.7, 99: 0.0}, False)
    assert (state.dtype, state.version) == ("bfloat16", "0.1.0")
    assert state.phases == (Phase("load", 2.5, 70, True),)


async def test_push(pod: Pod, client: RuntimeClient) -> None:
    answers = await client.push([pod.endpoint], ACCESS, Policy("Throughput", 64), 3)
    assert answers == {"u1": Accepted(3, 3)}
    assert pod.control.policy.mode == control_pb2.POLICY_MODE_THROUGHPUT
    assert pod.control.policy.threshold_tokens == 64


async def test_an_older_generation_is_refused(pod: Pod, client: RuntimeClient) -> None:
    await client.push([pod.endpoint], ACCESS, Policy(), 9)
    refusal = (await client.push([pod.endpoint], ACCESS, Policy(), 3))["u1"]
    assert isinstance(refusal, RuntimeCallError)
    assert refusal.code == "FAILED_PRECONDITION"


async def test_a_wrong_token_is_told_and_kept_secret(pod: Pod, client: RuntimeClient) -> None:
    with pytest.raises(RuntimeCallError) as caught:
        await client.get_state(pod.endpoint, Access("secret-token"))
    assert caught.value.code == "UNAUTHENTICATED"
    assert "secret-token" not in str(caught.value)


async def test_a_dead_pod_does_not_hide_its_neighbour(pod: Pod, client: RuntimeClient) -> None:
    dead = Endpoint("u2", "p2", "127.0.0.1:1")
    answers = await client.push([dead, pod.endpoint], ACCESS, Policy(), 2)
    assert isinstance(answers["u2"], RuntimeCallError)
    assert answers["u1"] == Accepted(2, 2)


async def test_a_silent_pod_costs_half_a_second(pod: Pod, client: RuntimeClient) -> None:
    pod.control.delay_seconds = 30.0
    started = asyncio.get_running_loop().time()
    answer = (await client.push([pod.endpoint], ACCESS, Policy(), 2))["u1"]
    assert isinstance(answer, RuntimeCallError)
    assert answer.code == "DEADLINE_EXCEEDED"
    assert asyncio.get_running_loop().time() - started < 2.0


async def test_a_slow_answer_is_collected_later(pod: Pod, client: RuntimeClient) -> None:
    pod.control.delay_seconds = 0.8
    assert await client.states([pod.endpoint], ACCESS) == {}
    await next_state(pod, client)
    assert pod.control.calls == 1, "the open question was not asked again"


async def test_a_dead_pod_is_waited_for_once(pod: Pod, client: RuntimeClient) -> None:
    """Half a second in every reading and every push kept the next policy from all other pods."""
    pod.control.delay_seconds = 30.0
    assert await client.states([pod.endpoint], ACCESS) == {}
    started = asyncio.get_running_loop().time()
    for generation in range(2, 12):
        assert await client.states([pod.endpoint], ACCESS) == {}
        answer = (await client.push([pod.endpoint], ACCESS, Policy(), generation))["u1"]
        assert isinstance(answer, RuntimeCallError)
    assert asyncio.get_running_loop().time() - started < 5.0, "twenty times half a second"


async def test_a_pod_that_was_silent_gets_the_policy_and_is_waited_for_again(pod: Pod, client: RuntimeClient) -> None:
    pod.control.delay_seconds = 0.8
    assert await client.states([pod.endpoint], ACCESS) == {}
    pod.control.delay_seconds = 0.0
    await client.push([pod.endpoint], ACCESS, Policy("Latency"), 4)
    assert (await next_state(pod, client)).generation_accepted == 4
    assert pod.control.policy.generation == 4
    assert await client.push([pod.endpoint], ACCESS, Policy("Latency"), 5) == {"u1": Accepted(5, 5)}


async def test_a_push_drops_questions_from_before(pod: Pod, client: RuntimeClient) -> None:
    pod.control.delay_seconds = 0.7
    assert await client.states([pod.endpoint], ACCESS) == {}
    pod.control.delay_seconds = 0.0
    await client.push([pod.endpoint], ACCESS, Policy(), 5)
    answer = await next_state(pod, client)
    assert answer.generation_accepted == 5


async def test_drain_is_seen_in_the_next_answer(pod: Pod, client: RuntimeClient) -> None:
    pod.control.delay_seconds = 0.7
    assert await client.states([pod.endpoint], ACCESS) == {}
    pod.control.delay_seconds = 0.0
    dead = Endpoint("u2", "p2", "127.0.0.1:1")
    answers = await client.drain([dead, pod.endpoint], ACCESS)
    assert isinstance(answers["u2"], RuntimeCallError)
    assert answers["u1"] is None
    assert (await next_state(pod, client)).draining


async def test_a_question_that_another_worker_dropped_is_no_answer(pod: Pod, client: RuntimeClient) -> None:
    """It ended the worker that had asked, for good: of a pod that was given from one resource to another."""
    pod.control.delay_seconds = 0.3
    asking = asyncio.create_task(client.states([pod.endpoint], ACCESS))
    await asyncio.sleep(0.1)
    await client.forget({pod.endpoint.uid})
    assert await asking == {}


async def test_forgotten_pods_leave_no_channel(pod: Pod, client: RuntimeClient) -> None:
    await client.get_state(pod.endpoint, ACCESS)
    await client.forget({"u1"})
    assert not client._channels
