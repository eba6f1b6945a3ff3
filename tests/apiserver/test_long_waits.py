"""What takes a minute of waiting, two at a time: rest beside an outage on a control plane of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.at_rest import writes_at_rest
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.plane import ControlPlane, control_plane, find_binary
from helpers.outage import Recovery, outage

pytestmark = pytest.mark.timeout(480)

REST_SECONDS = 60.0  # at five times the default pace: as many passes as in five minutes
OUTAGE_SECONDS = 60.0
RECOVERY_SECONDS = 30.0


@pytest.fixture(scope="module")
def outages(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Recovery]]]:
    """Run while the test at rest waits; the order of the tests in this file is part of that."""
    kube = find_binary()
    assert kube is not None, "the other plane runs"
    folder = tmp_path_factory.mktemp("outages")

    def run(name: str, ended: bool) -> Recovery:
        with control_plane(kube, folder / name) as own:
            own.create_namespace(name)
            return outage(own, name, folder / f"{name}.log", OUTAGE_SECONDS, ended)

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="outage") as pool:
        yield {name: pool.submit(run, name, ended) for name, ended in (("ended", True), ("stopped", False))}


def test_nothing_is_written_at_rest(
    outages: object, plane: ControlPlane, kubelet: Kubelet, namespace: str, tmp_path: Path
) -> None:
    writes, renewals = writes_at_rest(plane, kubelet, namespace, tmp_path / "operator.log", REST_SECONDS)
    print(f"{REST_SECONDS:g} s at rest: {renewals} renewals of the Lease, other writes: {dict(writes)}")
    assert writes == {}
    assert renewals >= REST_SECONDS / 5, "the operator led all the time"


@pytest.mark.parametrize("how", ["ended", "stopped"])
def test_an_api_server_that_was_away_for_a_minute(outages: dict[str, Future[Recovery]], how: str) -> None:
    found = outages[how].result(timeout=300)
    print(f"API server {how} for {OUTAGE_SECONDS:g} s: done with what was asked {found.seconds:.1f} s after its return")
    assert found.stood_by, "a leader that cannot renew must not act"
    assert found.seconds <= RECOVERY_SECONDS
    assert found.generations[1] > found.generations[0]
