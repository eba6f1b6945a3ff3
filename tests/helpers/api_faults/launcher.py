"""Operators as processes forked from one that has imported everything: a restart takes a tenth of a second."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from helpers.control_plane.operator import CADENCE
from kubernetes.aio.config import kube_config
from shiftoperator import manifests
from shiftoperator.handlers import controller, events

STOP_SECONDS = 20.0


def warm_up() -> None:
    """Lets the process with all imports start, which takes seconds."""
    _context().Process(target=_nothing).start()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shiftoperator.__main__", "helpers.api_faults.launcher"])
    return context


def _nothing() -> None:
    pass


class Launched:
    """An operator that can be killed and started again, with the same environment."""

    def __init__(self, kubeconfig: Path, namespace: str, identity: str, log: Path, bug: str = "") -> None:
        self._environment = {
            # A busy machine alone shall not cost the lead.
            **CADENCE, "SHIFT_LEASE_SECONDS": "12", "KUBECONFIG": str(kubeconfig), "SHIFT_WATCH_NAMESPACES": namespace,
            "SHIFT_NAMESPACE": namespace, "SHIFT_OPS_PORT": "0", "SHIFT_IDENTITY": identity,
        }  # fmt: skip
        self.log, self._bug = log, bug
        self._process: ForkServerProcess | None = None

    def start(self) -> None:
        self._process = _context().Process(target=_run, args=(self._environment, str(self.log), self._bug))
        self._process.start()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(STOP_SECONDS)
            self._process.close()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()


def _end_with_the_test() -> None:
    """The kernel's own signal would follow the process that forks, which outlives the one that asked for it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _run(environment: dict[str, str], log: str, bug: str) -> None:
    threading.Thread(target=_end_with_the_test, daemon=True).start()
    os.environ.update(environment)
    # Read when the module was imported.
    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = environment["KUBECONFIG"]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["shift-operator"]
    # Each step of a rollout waits for this long, and so do what no event told of and what failed again and again: that
    # would be most of a plan.
    for module in (manifests, sys.modules["shiftoperator.manifests.children"]):
        module.SETTLE_SECONDS = 1  # type: ignore[attr-defined]
    events.SWEEP_SECONDS = 3.0
    controller.LONGEST_BACKOFF_SECONDS = 6.0
    if bug:
        from helpers.api_faults.planted import BUGS

        BUGS[bug].plant()
    from shiftoperator.__main__ import main

    main()
