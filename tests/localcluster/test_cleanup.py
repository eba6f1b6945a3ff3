"""`down` deletes only folders that carry the marker of `up`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from localcluster import bringup, cleanup, machine
from localcluster.errors import ClusterError
from localcluster.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    state = tmp_path / "state"
    state.mkdir()
    (state / "thesis.txt").write_text("precious")
    return Settings(state, tmp_path / "run", tmp_path / "cache", "http://mirror", tmp_path / "ca", tmp_path / "pip")


def test_down_keeps_a_state_folder_that_up_never_claimed(settings: Settings) -> None:
    cleanup.down(settings)
    assert (settings.state / "thesis.txt").read_text() == "precious"


def test_down_ends_no_control_plane_of_somebody_else(settings: Settings, tmp_path: Path) -> None:
    """It took the API servers of test sessions for its own, because they run the same programs."""
    program = settings.cache / "0123" / "shift-kube"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/sh")
    ours, others = (
        subprocess.Popen([str(program), "-c", "sleep 60 & wait", f"--data-dir={folder}/etcd"], start_new_session=True)
        for folder in (settings.state, tmp_path / "elsewhere")
    )
    try:
        assert [pid for pid, _, _ in cleanup.stragglers(settings)] == [ours.pid]
    finally:
        for process in (ours, others):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def test_up_refuses_a_state_folder_with_other_files(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "check_unused", lambda: None)
    with pytest.raises(ClusterError, match="StateTaken"):
        bringup.claim(settings)
    assert not settings.marker.exists()


def test_remove_state_takes_everything_with_the_marker(settings: Settings) -> None:
    settings.marker.write_text("boot")
    (settings.state / "pki").mkdir()
    cleanup.remove_state(settings)
    assert not settings.state.exists()
