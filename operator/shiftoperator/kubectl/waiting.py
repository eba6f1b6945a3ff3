"""Waits for something in the cluster, says what it waits for, and ends at its deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

from shiftoperator.kubectl.client import KubectlError
from shiftoperator.kubectl.output import note

POLL_SECONDS = 1.0
# kubectl may fail now and then while a cluster is busy; in a row it will go on to.
_FAILURES = 3


def until(look: Callable[[], str], seconds: float, poll_seconds: float | None = None) -> bool:
    """`look` says what is still missing, nothing when it is there. False when that lasts for so long.
    Raises KubectlError when kubectl failed three times in a row."""
    end, told, failures = time.monotonic() + seconds, "", 0
    while True:
        try:
            missing, failures = look(), 0
        except KubectlError:
            failures += 1
            if failures >= _FAILURES:
                raise
            missing = told
        if not missing and not failures:
            return True
        if missing and missing != told:
            note(f"waiting: {missing}")
            told = missing
        if time.monotonic() >= end:
            note(f"not within {seconds:g} s: {told}")
            return False
        time.sleep(min(poll_seconds or POLL_SECONDS, max(0.0, end - time.monotonic())))
