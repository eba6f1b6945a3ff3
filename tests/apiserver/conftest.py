"""A control plane of this session: etcd, the API server, a few controllers, and a stand-in for nodes and runtimes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import HOW_TO_BUILD, ControlPlane, control_plane, find_binary
from helpers.long_waits import LongWaits

_LONG_WAITS = "test_long_waits.py"
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Last of this folder what has run beside the others all the while."""
    here = [number for number, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ordered = sorted((items[number] for number in here), key=lambda item: item.path.name == _LONG_WAITS)
    for number, item in zip(here, ordered, strict=True):
        items[number] = item


@pytest.fixture(scope="session", autouse=True)
def long_waits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongWaits | None]:
    """From the beginning of the session, if somebody will ask what came of it."""
    asked = any(item.path.name == _LONG_WAITS for item in request.session.items)
    if not asked or find_binary() is None:
        yield None
        return
    started = LongWaits(tmp_path_factory.mktemp("long-waits"))
    yield started
    started.end()


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    kube = find_binary()
    if kube is None:
        if "e2e" in os.environ.get("SHIFT_REQUIRE", ""):
            pytest.fail(HOW_TO_BUILD)
        pytest.skip(HOW_TO_BUILD)
    with control_plane(kube, tmp_path_factory.mktemp("control-plane")) as started:
        yield started


@pytest.fixture(scope="session")
def kubelet(plane: ControlPlane) -> Iterator[Kubelet]:
    """Runs the pods of every namespace; `behave` changes how."""
    with Kubelet(plane) as running:
        yield running


@pytest.fixture
def namespace(plane: ControlPlane) -> Iterator[str]:
    name = f"test-{next(_numbers)}"
    plane.create_namespace(name)
    yield name
    plane.delete_namespace(name)


@pytest.fixture
def operator(plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    """Of the test's namespace; the audit log knows it as `operator.user`."""
    user = f"operator-of-{namespace}"
    kubeconfig = plane.kubeconfig(user, "system:masters")
    # A busy machine alone shall not cost the lead.
    with operator_process(kubeconfig, user, namespace, tmp_path / "operator.log", SHIFT_LEASE_SECONDS="15") as running:
        yield running
