"""What is read once for many resources."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from shiftoperator.errors import TransientError
from shiftoperator.names import Key
from shiftoperator.observe import SCALERS_SECONDS, Scalers

from .conftest import Make
from .world import World

Object = dict[str, Any]


def scaler(name: str, target: str, kind: str = "ShiftDeployment") -> Object:
    return {"metadata": {"name": name}, "spec": {"scaleTargetRef": {"kind": kind, "name": target}}}


class Lists:
    """A cluster that counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.scalers = [scaler("other", "gemma", "Deployment"), scaler("hpa", "gemma")]
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def list(self, kind: str, namespace: str) -> list[Object]:
        assert kind == "HorizontalPodAutoscaler"
        self.asked.append(namespace)
        await self.gate.wait()
        if self.fails:
            raise TransientError("no API")
        return self.scalers if namespace == "team" else []


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def scalers(lists: Lists, clock: Clock) -> Scalers:
    return Scalers(lists, clock)  # type: ignore[arg-type]


async def test_many_resources_of_a_namespace_cost_one_list() -> None:
    """Every pass of every resource listed all of them: five hundred resources, five hundred lists."""
    lists, clock = Lists(), Clock()
    seen = scalers(lists, clock)
    names = ["gemma", *(f"model-{number}" for number in range(99))]
    lists.gate.clear()
    passes = [asyncio.create_task(seen.of(Key("team", name))) for name in names]
    await asyncio.sleep(0)
    lists.gate.set()
    found = await asyncio.gather(*passes)
    assert found == ["hpa"] + [None] * 99
    clock.now += SCALERS_SECONDS - 0.1
    assert await seen.of(Key("team", "gemma")) == "hpa"
    assert await seen.of(Key("elsewhere", "gemma")) is None
    assert lists.asked == ["team", "elsewhere"]


async def test_another_scaler_is_noticed_when_the_list_is_old() -> None:
    lists, clock = Lists(), Clock()
    seen = scalers(lists, clock)
    assert await seen.of(Key("team", "llama")) is None
    lists.scalers = [scaler("new", "llama")]
    clock.now += SCALERS_SECONDS
    assert await seen.of(Key("team", "llama")) == "new"
    lists.scalers = []
    seen.forget()
    assert await seen.of(Key("team", "llama")) is None, "who leads anew looks anew"


async def test_a_list_that_failed_counts_for_those_who_waited_and_no_longer() -> None:
    lists, clock = Lists(), Clock()
    seen = scalers(lists, clock)
    lists.fails = True
    failed = await asyncio.gather(*(seen.of(Key("team", "gemma")) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [TransientError] * 3
    assert lists.asked == ["team"]
    lists.fails = False
    assert await seen.of(Key("team", "gemma")) == "hpa"


async def test_a_pass_that_is_cancelled_takes_the_list_from_nobody() -> None:
    lists = Lists()
    seen = scalers(lists, Clock())
    lists.gate.clear()
    passes = [asyncio.create_task(seen.of(Key("team", "gemma"))) for _ in range(2)]
    await asyncio.sleep(0)
    passes[0].cancel()
    await asyncio.sleep(0)
    lists.gate.set()
    assert await passes[1] == "hpa"
    with pytest.raises(asyncio.CancelledError):
        await passes[0]


async def test_passes_over_a_resource_list_no_scalers_while_the_list_is_young(make: Make) -> None:
    world, asked = World(make), []
    listed = world.cluster.list

    async def counting(kind: str, namespace: str, label_selector: str = "") -> list[Object]:
        asked.append(kind)
        return await listed(kind, namespace, label_selector)

    world.cluster.list = counting  # type: ignore[method-assign]
    for _ in range(4):
        await world.full()
    assert asked.count("HorizontalPodAutoscaler") == 1
    world.now += SCALERS_SECONDS
    await world.full()
    assert asked.count("HorizontalPodAutoscaler") == 2
