"""The Services say what the pods that serve speak, through a rollout and back."""

from __future__ import annotations

from .conftest import Make
from .rollouts import change, rolled_back, running
from .world import World


def protocols(world: World) -> set[str]:
    """Of both Services' ports for clients."""
    services = [world.cluster.objects["Service", name] for name in ("gemma", "gemma-headless")]
    return {port["appProtocol"] for service in services for port in service["spec"]["ports"]}


PLAIN, TLS = {"http", "kubernetes.io/h2c"}, {"https"}


async def test_a_service_says_what_the_pods_that_serve_speak_while_they_are_replaced(make: Make) -> None:
    """It followed the spec at once, and mesh and load balancer spoke TLS to pods that did not."""
    world = await World(make, replicas=3).healthy()
    for name in ("p2", "p3"):
        world.cluster.add_pod(name, running(world))
    await world.full()
    old = running(world)
    change(world, service={"tls": {"secretName": "cert"}})
    await world.full()
    assert running(world) != old
    assert protocols(world) == PLAIN, "not one pod of it is there"
    said = []
    for name in ("p1", "p2", "p3"):
        world.cluster.add_pod(name, running(world))
        await world.full()
        said.append(protocols(world))
    assert said == [PLAIN, TLS, TLS], "as most pods do"


async def test_a_service_says_what_pods_speak_that_were_rolled_back(make: Make) -> None:
    world = await rolled_back(make, service={"tls": {"secretName": "cert"}})
    assert world.condition("Ready") == ("False", "RolledBack")
    assert protocols(world) == PLAIN


async def test_a_service_without_pods_says_what_the_first_ones_will_speak(make: Make) -> None:
    world = World(make, service={"tls": {"secretName": "cert"}})
    await world.full()
    assert protocols(world) == TLS
