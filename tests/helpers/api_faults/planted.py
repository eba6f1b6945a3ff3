"""Bugs put into the operator on purpose, each of a kind that operators have had: the faults must bring them to light.

They are planted in a process that was forked for it; the product has no switch for them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shiftoperator import apply, handlers, names, observe, plan, reconcile, status
from shiftoperator.cluster import client, lease
from shiftoperator.errors import ConflictError, TransientError
from shiftoperator.handlers import controller
from shiftprotos import contract

Object = dict[str, Any]


@dataclass(frozen=True)
class Bug:
    story: str
    plant: Callable[[], None]
    # Where it can show.
    workloads: tuple[str, ...] = ("create", "rollout", "policy")
    standby: bool = False


def _no_precondition() -> None:
    """Writes to /status and /scale say which version they were decided on; these do not."""
    call = client.Cluster._call

    async def careless(self: Any, method: str, where: str, body: Any = None, *more: Any, **options: Any) -> Any:
        if method == "PATCH" and where.endswith(("/status", "/scale")):
            body = {**body, "metadata": {}}
        return await call(self, method, where, body, *more, **options)

    client.Cluster._call = careless  # type: ignore[method-assign, assignment]


def _random_name() -> None:
    def named(name: str, template_hash: str) -> str:
        return f"{name}-{template_hash}-{secrets.token_hex(2)}"

    names.controller_revision = named


def _pushed_before_stored() -> None:
    async def set_policy(self: Any, memory: Any, decided: Any, spec: Any) -> None:
        seen = memory.known
        await self._push(memory, decided, seen.live_pods)
        changed = status.raised_generation(seen.status, decided.policy, decided.generation, self._now_text())
        memory.snapshot = memory.known.answered(await apply.status(self._cluster, seen.resource, changed))

    reconcile.Policies._set = set_policy  # type: ignore[method-assign, assignment]


def _generation_of_this_process() -> None:
    """Counts from one at every start of the process instead of from what is stored."""
    policy, given = plan.policy, {}

    def counted(told: Object, wanted: Any, states: Any = ()) -> Any:
        known = given.get("generation", 0)
        decided = policy({**told, "policyGeneration": known}, wanted, states)
        given["generation"] = decided.generation
        return decided

    plan.policy = counted  # type: ignore[assignment]


def _creates_while_deleted() -> None:
    look = observe.snapshot

    async def blind(cluster: Any, *more: Any) -> Any:
        get = cluster.get

        async def without_timestamp(kind: str, namespace: str, name: str) -> Any:
            found = await get(kind, namespace, name)
            if found is not None and kind == contract.KIND:
                found["metadata"].pop("deletionTimestamp", None)
            return found

        cluster.get = without_timestamp
        return await look(cluster, *more)

    observe.snapshot = blind  # type: ignore[assignment]


def _conflicts_ignored() -> None:
    call = client.Cluster._call

    async def deaf(self: Any, method: str, where: str, *more: Any, **options: Any) -> Any:
        try:
            return await call(self, method, where, *more, **options)
        except ConflictError:
            return {}

    client.Cluster._call = deaf  # type: ignore[method-assign, assignment]


def _no_sweep() -> None:
    """What lists all objects from time to time makes up for bugs as they are planted beside this."""

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    handlers.sweep = never  # type: ignore[assignment]


def _no_list_after_410() -> None:
    from kopf._cogs.clients import watching

    once = watching.watch_objs

    async def stuck(**options: Any) -> Any:
        async for event in once(**options):
            if event.get("type") == "ERROR":
                await asyncio.Event().wait()
            yield event

    watching.watch_objs = stuck
    _no_sweep()


def _errors_swallowed() -> None:
    once = controller.Controller._reconcile_once

    async def calm(self: Any, *what: Any) -> plan.Found:
        try:
            return await once(self, *what)
        except TransientError:
            return plan.Found.GONE

    controller.Controller._reconcile_once = calm  # type: ignore[method-assign, assignment]
    _no_sweep()


def _two_writers() -> None:
    async def always(self: Any) -> bool:
        return True

    lease.Election._try = always  # type: ignore[method-assign, assignment]


def _deletes_too_much() -> None:
    """Old revisions are found by the label of all that this operator manages."""

    async def wide(cluster: Any, changes: Any) -> Any:
        written = await children(cluster, changes)
        for applied in changes.apply:
            if applied["kind"] == "ControllerRevision":
                found = await cluster.list("ControllerRevision", applied["metadata"]["namespace"])
                for other in found:
                    if other["metadata"]["name"] != applied["metadata"]["name"]:
                        await cluster.delete({**other, "metadata": {**other["metadata"]}})
        return written

    children = apply.children
    apply.children = wide


def _key_made_anew() -> None:
    """A process that has just started does not look for the key that there is."""
    token, seen = plan.control_token, set[str]()

    def forgetful(snapshot: Any) -> str | None:
        if str(snapshot.key) not in seen:
            seen.add(str(snapshot.key))
            return None
        return token(snapshot)

    plan.control_token = forgetful


def _ready_pods_forgotten() -> None:
    """A list that cannot be read counts as empty."""
    listed = client.Cluster.list

    async def hopeful(self: Any, *what: Any) -> Any:
        try:
            return await listed(self, *what)
        except TransientError:
            return []

    client.Cluster.list = hopeful  # type: ignore[method-assign, assignment]


BUGS = {
    "no-precondition": Bug(
        "status and scale are written over what somebody else wrote", _no_precondition,
        ("scale-in-by-itself",),
    ),
    "random-name": Bug("a child gets another name at every try", _random_name),
    "pushed-before-stored": Bug(
        "pods hear of a generation before it is stored", _pushed_before_stored, ("policies-in-haste",)
    ),
    "generation-of-process": Bug("generations begin anew with the process", _generation_of_this_process, ("policy",)),
    "creates-while-deleted": Bug("goes on while the object is being deleted", _creates_while_deleted,
        ("deletion-held-up", "delete-while-creating")),
    "conflicts-ignored": Bug(
        "a write that met a conflict counts as done", _conflicts_ignored, ("scale-in-by-itself", "policy", "recreate")
    ),
    "no-list-after-410": Bug("a watch that is too old is not begun anew", _no_list_after_410,
        ("recreate", "neighbours", "create")),
    "errors-swallowed": Bug("an error ends the work on an object", _errors_swallowed),
    "two-writers": Bug("two processes lead at once", _two_writers,
        ("scale-in-by-itself", "policies-in-haste", "policy"), standby=True),
    "deletes-too-much": Bug("objects of a neighbour are cleaned up", _deletes_too_much, ("neighbours",)),
    "key-made-anew": Bug("a restart makes a new control key", _key_made_anew, ("create", "policy", "rollout")),
    "lists-taken-for-empty": Bug("a list that failed counts as empty", _ready_pods_forgotten, ("rollout", "scale")),
}  # fmt: skip

# Bugs that nearly every plan ends like the product with, and what heals them: whether one shows is luck.
HEALED = {
    "conflicts-ignored": "the next pass misses what was not written, and writes it",
    "no-list-after-410": "a resync reads known objects whatever the watch told; one that is made just then shows it",
    "lists-taken-for-empty": "the next pass reads the list again, and puts right what the empty one led to",
}
