"""The demo's record of replicas."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from examples.demo import watch
from localcluster.settings import from_environment


def test_what_ended_the_watch_is_part_of_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch ended on "1 of 1 ready" before its thread, which looks once a second, had seen it: 1 → 2."""
    now = {"reading": watch.Reading(1, 1, {})}
    monkeypatch.setattr(watch, "read", lambda _: now["reading"])
    with watch.ReplicaPath(from_environment(), lambda _: None) as path:
        for _ in range(200):
            if path.wanted:
                break
            path._stop.wait(0.01)
        now["reading"] = watch.Reading(2, 2, {})
    assert path.wanted == [1, 2]
    assert path.ready == [1, 2]
