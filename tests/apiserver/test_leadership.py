"""One operator acts, the other takes over when it falls silent, and one that wakes up late does nothing any more."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import change, collection, condition, holder, resource, wait_for

pytestmark = pytest.mark.timeout(120)

LEASE_SECONDS = 5.0
TAKEOVER_SECONDS = LEASE_SECONDS + 10.0  # the Lease must look abandoned first; a busy machine is slow


@pytest.fixture
def pair(plane: ControlPlane, kubelet: Kubelet, namespace: str, tmp_path: Path) -> Iterator[tuple[Operator, Operator]]:
    """The first leads. Their metrics namespaces differ, so that each would write the other's NetworkPolicy anew."""
    with ExitStack() as stack:
        operators = []
        for name in ("first", "second"):
            user = f"{name}-of-{namespace}"
            kubeconfig, log = plane.kubeconfig(user, "system:masters"), tmp_path / f"{name}.log"
            started = operator_process(kubeconfig, user, namespace, log, SHIFT_METRICS_NAMESPACES=name)
            operators.append(stack.enter_context(started))
            wait_for(f"the {name} to look at the Lease", partial(asked_for_the_lease, plane, user))
            wait_for("a leader", lambda: holder(plane, namespace))
        plane.admin.call("POST", collection(namespace), example("led", replicas=1))
        wait_for("Ready", lambda: condition(plane, namespace, "led")[0] == "True")
        assert holder(plane, namespace) == operators[0].user
        yield operators[0], operators[1]


def test_a_standby_writes_nothing_and_takes_over_at_once_from_one_that_ends(
    plane: ControlPlane, namespace: str, pair: tuple[Operator, Operator]
) -> None:
    first, second = pair
    assert [r for r in plane.audit.of_user(second.user) if r.writes] == []
    first.process.terminate()
    assert first.process.wait(20) == 0
    started = time.monotonic()
    wait_for("the second to lead", lambda: holder(plane, namespace) == second.user, TAKEOVER_SECONDS)
    print(f"the Lease was released and taken after {time.monotonic() - started:.2f} s")
    assert_acts(plane, namespace)


def test_a_standby_takes_over_from_one_that_fell_silent_which_then_writes_nothing_more(
    plane: ControlPlane, namespace: str, pair: tuple[Operator, Operator]
) -> None:
    """Woken late, it acted on what it had seen until its own next look at the Lease."""
    first, second = pair
    first.process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        wait_for("the second to lead", lambda: holder(plane, namespace) == second.user, TAKEOVER_SECONDS)
        print(f"taken over {time.monotonic() - started:.2f} s after the leader fell silent")
        assert_acts(plane, namespace)
        wait_for("the second's policy", lambda: readers(plane, namespace) == {"second", namespace})
    finally:
        mark = plane.audit.position()
        first.process.send_signal(signal.SIGCONT)
    wait_for("the first to notice", lambda: "lost leadership" in first.log, 20.0)
    time.sleep(3 * 1.0)  # three times the interval at which it compares
    # What was on its way when it was stopped is answered by now, with an error.
    late = [r for r in plane.audit.of_user(first.user, mark) if r.writes and r.code < 400]
    assert [f"{r.verb} {r.path} {r.code}" for r in late] == []
    assert readers(plane, namespace) == {"second", namespace}
    assert first.process.poll() is None


def asked_for_the_lease(plane: ControlPlane, user: str) -> bool:
    return any(request.resource == "leases" for request in plane.audit.of_user(user))


def readers(plane: ControlPlane, namespace: str) -> set[str]:
    """Who may read metrics, as the NetworkPolicy says that the leader wrote."""
    policy = plane.admin.get(f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/led")
    peers = [peer["namespaceSelector"] for rule in policy["spec"]["ingress"] for peer in rule.get("from", ())]
    return {name for peer in peers for rule in peer.get("matchExpressions", ()) for name in rule["values"]}


def assert_acts(plane: ControlPlane, namespace: str) -> None:
    """Generations go on from where they were."""
    before = resource(plane, namespace, "led")["status"]["policyGeneration"]
    change(plane, namespace, "led", {"shift": {"policy": "Latency"}})
    wait_for("the policy", lambda: resource(plane, namespace, "led")["status"]["policyGeneration"] > before)
    wait_for("the pods", lambda: condition(plane, namespace, "led", "PolicyInSync")[0] == "True")
