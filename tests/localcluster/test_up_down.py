"""After `up` and `down`, and after a crash and `down`, the machine is as it was before."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from localcluster import cleanup, network, processes
from localcluster.settings import from_environment

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = from_environment()
PROGRAMS = ("shift-kube", "containerd", "containerd-shim-runc-v2", "pause")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        SETTINGS.state.exists(), reason="a cluster is up; this test would end it: `cluster.py down` first"
    ),
]


@dataclass(frozen=True)
class Snapshot:
    """What a cluster changes on a machine, in a form that compares equal."""

    rules: tuple[str, ...]
    links: tuple[str, ...]
    mounts: tuple[str, ...]
    programs: tuple[str, ...]
    sysctls: tuple[str, ...]
    folders: tuple[str, ...]


def snapshot() -> Snapshot:
    saved = network.run("iptables-save") + network.run("ip6tables-save")
    # iptables-nft makes its empty built-in tables on first use and cannot delete them: rules and own chains count.
    rules = [line for line in saved.splitlines() if line.startswith("-A") or re.match(r":\S+ - ", line)]
    names = [Path(command.split()[0]).name for _, _, command in processes.with_argument("") if command]
    sysctls = [Path("/proc/sys") / name for name in network.SYSCTLS]
    return Snapshot(
        rules=tuple(re.sub(r"\[\d+:\d+\]", "", line) for line in rules),
        links=tuple(re.findall(r"^\d+: (\S+):", network.run("ip", "-o", "link"), flags=re.MULTILINE)),
        mounts=tuple(sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())),
        programs=tuple(sorted(name for name in names if name in PROGRAMS)),
        sysctls=tuple(f"{path}={path.read_text().strip()}" for path in sysctls if path.exists()),
        folders=tuple(str(path) for path in (SETTINGS.state, SETTINGS.run, Path("/run/containerd")) if path.exists()),
    )


def cluster(command: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, str(ROOT / "localcluster" / "cluster.py"), command]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=550, check=False)


@pytest.fixture
def before() -> Snapshot:
    if not Path("/proc/sys/net/bridge").exists():
        network.run("modprobe", "br_netfilter")  # `up` loads it and leaves it loaded
    return snapshot()


def test_down_undoes_up(before: Snapshot) -> None:
    try:
        up = cluster("up")
        assert up.returncode == 0, up.stderr
        assert cluster("status").returncode == 0
        again = cluster("up")
        assert again.returncode == 0, again.stderr
    finally:
        down = cluster("down")
    assert (down.returncode, down.stderr) == (0, "")
    assert snapshot() == before
    assert cluster("down").returncode == 0
    assert cluster("status").returncode == 1


def test_down_cleans_up_after_a_crash(before: Snapshot) -> None:
    try:
        up = cluster("up")
        assert up.returncode == 0, up.stderr
        victims = cleanup.stragglers(SETTINGS) + processes.with_argument(f"{SETTINGS.config}/containerd.toml")
        for pid, _, _ in victims:
            os.kill(pid, signal.SIGKILL)
        assert cluster("status").returncode == 1
    finally:
        down = cluster("down")
    assert (down.returncode, down.stderr) == (0, "")
    assert snapshot() == before
