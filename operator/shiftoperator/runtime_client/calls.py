"""Calls to the control port of runtime pods: one channel per pod, and no pod holds up its neighbours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
from shiftprotos import contract
from shiftprotos.v1 import control_pb2, control_pb2_grpc

from shiftoperator.errors import RuntimeCallError
from shiftoperator.runtime_client.wire import policy_to_wire, state_from_wire
from shiftoperator.snapshot import Access, ClientTls, Pod, RuntimeState
from shiftoperator.spec import Policy

PUSH_SECONDS = 0.5
DRAIN_SECONDS = 2.0
# A pod answers during a step too, but one that is busy may take its time; the pod itself gives up after 5 s.
STATE_SECONDS = 6.0
# One pass waits so long for answers and goes on with those that came.
WAIT_SECONDS = 0.5
_TOO_LATE = "DEADLINE_EXCEEDED"

T = TypeVar("T")

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
    tls: bool = False


def endpoints(pods: Iterable[Pod]) -> list[Endpoint]:
    """Of the pods that can be asked."""
    return [_endpoint(pod) for pod in pods if pod.ip and pod.running]


def _endpoint(pod: Pod) -> Endpoint:
    host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
    return Endpoint(pod.uid, pod.name, f"{host}:{contract.CONTROL_PORT}", pod.control_tls)


@dataclass(frozen=True)
class Accepted:
    generation_accepted: int
    generation_applied: int


class RuntimeClient:
    """Keeps one channel per pod: a push must not pay for a new connection."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._channels: dict[Endpoint, _Opened] = {}
        self._outdated: list[tuple[float, grpc.aio.Channel]] = []  # with the time to close them
        self._questions: dict[Endpoint, asyncio.Task[RuntimeState | RuntimeCallError]] = {}
        # Pods that let the last call run out of time: they are asked like others, and not waited for.
        self._silent: set[Endpoint] = set()
        self._pushes: dict[Endpoint, asyncio.Task[Accepted | RuntimeCallError]] = {}  # that are on their way

    async def get_state(self, endpoint: Endpoint, access: Access) -> RuntimeState:
        """Raises RuntimeCallError."""
        request = control_pb2.GetStateRequest()
        call = self._stub(endpoint, access).GetState(request, timeout=STATE_SECONDS, metadata=_bearer(access.token))
        return state_from_wire(await _answer(call), self._clock())

    async def set_policy(self, endpoint: Endpoint, access: Access, policy: Policy, generation: int) -> Accepted:
        """Raises RuntimeCallError; FAILED_PRECONDITION when the pod accepted a higher generation."""
        request = control_pb2.SetPolicyRequest(policy=policy_to_wire(policy, generation))
        call = self._stub(endpoint, access).SetPolicy(request, timeout=PUSH_SECONDS, metadata=_bearer(access.token))
        response = await _answer(call)
        return Accepted(response.generation_accepted, response.generation_applied)

    async def states(self, endpoints: Iterable[Endpoint], access: Access) -> dict[str, RuntimeState | RuntimeCallError]:
        """By pod uid: what was answered by now. A question still open is answered in a later call, so that a pod busy
        with a long step holds nobody up, and one that is dead does so once."""
        asked = {endpoint: self._ask(endpoint, access) for endpoint in endpoints}
        if not asked:
            return {}
        await self._wait(asked)
        answers: dict[str, RuntimeState | RuntimeCallError] = {}
        for endpoint, task in asked.items():
            # Cancelled: somebody else was told that this pod is gone.
            if task.done() and not task.cancelled():
                self._questions.pop(endpoint, None)
                answers[endpoint.uid] = task.result()
            self._remember(endpoint, answers.get(endpoint.uid))
        return answers

    async def _wait(self, asked: Mapping[Endpoint, asyncio.Task[Any]]) -> None:
        talking = [task for endpoint, task in asked.items() if endpoint not in self._silent]
        # What is not waited for must be sent at least.
        await (asyncio.wait(talking, timeout=WAIT_SECONDS) if talking else asyncio.sleep(0))

    def _remember(self, endpoint: Endpoint, answer: object) -> None:
        """`answer`: None while there is none."""
        late = answer is None or (isinstance(answer, RuntimeCallError) and answer.code == _TOO_LATE)
        (self._silent.add if late else self._silent.discard)(endpoint)

    def _ask(self, endpoint: Endpoint, access: Access) -> asyncio.Task[RuntimeState | RuntimeCallError]:
        question = self._questions.get(endpoint)
        if question is None:
            question = asyncio.create_task(self._state_after_push(endpoint, access), name=f"state {endpoint.name}")
            self._questions[endpoint] = question
        return question

    async def _state_after_push(self, endpoint: Endpoint, access: Access) -> RuntimeState | RuntimeCallError:
        """An answer that overtakes a push on its way would look like a pod that has lost it."""
        push = self._pushes.get(endpoint)
        if push is not None:
            await asyncio.wait([push])  # it has a deadline of its own
        return await _or_error(self.get_state(endpoint, access))

    async def push(
        self, endpoints: Iterable[Endpoint], access: Access, policy: Policy, generation: int
    ) -> dict[str, Accepted | RuntimeCallError]:
        """By pod uid, sent in parallel. What a silent pod answers is not waited for: its state will tell."""
        asked = list(endpoints)
        # An answer given before this push would look like a pod that has lost it.
        self._drop_questions(set(asked))
        sent = {e: asyncio.create_task(_or_error(self.set_policy(e, access, policy, generation))) for e in asked}
        for endpoint, task in sent.items():
            if (before := self._pushes.get(endpoint)) is not None:
                before.cancel()  # nobody waits for it, and its generation is an older one
            self._pushes[endpoint] = task
            task.add_done_callback(partial(self._pushed, endpoint))
        talking = [task for endpoint, task in sent.items() if endpoint not in self._silent]
        await (asyncio.wait(talking) if talking else asyncio.sleep(0))
        answers: dict[str, Accepted | RuntimeCallError] = {}
        for endpoint, task in sent.items():
            if task.done():
                self._remember(endpoint, task.result())
            answers[endpoint.uid] = task.result() if task.done() else RuntimeCallError(_TOO_LATE, "silent before too")
        return answers

    def _pushed(self, endpoint: Endpoint, task: asyncio.Task[Accepted | RuntimeCallError]) -> None:
        if self._pushes.get(endpoint) is task:
            del self._pushes[endpoint]

    async def drain(self, endpoints: Iterable[Endpoint], access: Access) -> dict[str, RuntimeCallError | None]:
        """Lets pods take no more requests, in parallel; by pod uid what went wrong. A pod cannot be told to go back."""
        asked = list(endpoints)
        # An answer given before would look like a pod that does not drain.
        self._drop_questions(set(asked))
        answers = await asyncio.gather(*(_or_error(self._drain(endpoint, access)) for endpoint in asked))
        return dict(zip((e.uid for e in asked), answers, strict=True))

    async def _drain(self, endpoint: Endpoint, access: Access) -> None:
        request = control_pb2.DrainRequest()
        await _answer(
            self._stub(endpoint, access).Drain(request, timeout=DRAIN_SECONDS, metadata=_bearer(access.token))
        )

    async def forget(self, uids: set[str]) -> None:
        """Closes the channels of pods that are gone, and those that others have replaced."""
        if uids:
            self._drop_questions({e for e in self._questions if e.uid in uids})
            self._silent = {e for e in self._silent if e.uid not in uids}
            for endpoint in [e for e in self._channels if e.uid in uids]:
                await self._channels.pop(endpoint).channel.close()
        now = self._clock()
        for channel in [channel for at, channel in self._outdated if at <= now]:
            await channel.close()
        self._outdated = [(at, channel) for at, channel in self._outdated if at > now]

    async def close(self) -> None:
        """Closes every channel; a later call opens a new one."""
        for task in self._pushes.values():
            task.cancel()
        await self.forget({endpoint.uid for endpoint in self._channels})
        for _, channel in self._outdated:
            await channel.close()
        self._outdated.clear()

    def _drop_questions(self, endpoints: set[Endpoint]) -> None:
        for endpoint in endpoints & self._questions.keys():
            self._questions.pop(endpoint).cancel()

    def _stub(self, endpoint: Endpoint, access: Access) -> Any:
        tls = access.tls if endpoint.tls else None
        opened = self._channels.get(endpoint)
        if opened is None or opened.tls != tls:
            if opened is not None:
                # Calls on it go on until their deadlines.
                self._outdated.append((self._clock() + STATE_SECONDS, opened.channel))
            opened = _Opened(_open(endpoint, tls), tls)
            self._channels[endpoint] = opened
        return control_pb2_grpc.ControlStub(opened.channel)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Opened:
    """A channel, and the certificates that it was opened with; None for plaintext."""

    channel: grpc.aio.Channel
    tls: ClientTls | None


def _open(endpoint: Endpoint, tls: ClientTls | None) -> grpc.aio.Channel:
    """Plaintext to pods of an older template; there the NetworkPolicy and the token guard the port."""
    if not endpoint.tls:
        return grpc.aio.insecure_channel(endpoint.address, options=_CHANNEL_OPTIONS)
    if tls is None:
        raise RuntimeCallError("UNAUTHENTICATED", "the certificates of the control channel are not stored yet")
    credentials = grpc.ssl_channel_credentials(tls.authorities, tls.key, tls.certificate)
    # Every pod has the same name in its certificate, whatever its address.
    options = (*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", contract.CONTROL_TLS_NAME))
    return grpc.aio.secure_channel(endpoint.address, credentials, options=options)


async def _answer(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise RuntimeCallError(error.code().name, error.details() or "") from error


async def _or_error(call: Coroutine[Any, Any, T]) -> T | RuntimeCallError:
    """Errors of one pod are answers like others: they must not hide those of its neighbours."""
    try:
        return await call
    except RuntimeCallError as error:
        return error


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return ((contract.AUTHORIZATION_METADATA, f"Bearer {token}"),)
