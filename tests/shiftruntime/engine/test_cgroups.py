"""Limits are found wherever a cgroup sets them: at the mount of a container, in a folder below, or above that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shiftruntime.engine.cgroups import Cgroups

MIB = 1 << 20
ALL = len(os.sched_getaffinity(0))


def cgroups(tmp_path: Path, own: str, files: dict[str, str]) -> Cgroups:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return Cgroups(root, tmp_path / "own")


def memory(folder: str, limit: object, usage: int, inactive: int = 0) -> dict[str, str]:
    values = {"memory.max": limit, "memory.current": usage, "memory.stat": f"anon 1\ninactive_file {inactive}"}
    return {f"{folder}{name}": f"{value}\n" for name, value in values.items()}


def old_memory(folder: str, limit: int, usage: int) -> dict[str, str]:
    values = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage, "memory.stat": "inactive_file 0"}
    return {f"memory/{folder}{name}": f"{value}\n" for name, value in values.items()}


@pytest.mark.parametrize(
    ("own", "files", "limit", "left"),
    [
        pytest.param("0::/\n", memory("", 300 * MIB, 100 * MIB, 5 * MIB), 300, 205, id="container"),
        pytest.param("0::/\n", memory("", "max", 100 * MIB), None, None, id="no limit"),
        pytest.param("0::/a/b\n", memory("a/b/", 300 * MIB, 100 * MIB), 300, 200, id="unit"),
        pytest.param(
            "0::/a/b\n", memory("a/b/", 300 * MIB, 100 * MIB) | memory("a/", 150 * MIB, 140 * MIB), 150, 10, id="above"
        ),
        pytest.param("0::/../x\n", memory("", 300 * MIB, 0), 300, 300, id="outside of the mount"),
        pytest.param("0::/kubepods/p\n", memory("", 300 * MIB, 0), 300, 300, id="path of the host"),
        pytest.param("4:memory:/p/q\n0::/\n", old_memory("p/q/", 300 * MIB, 100 * MIB), 300, 200, id="version 1"),
        pytest.param("4:memory:/\n", old_memory("", 2**63 - 4096, 5), None, None, id="version 1 without limit"),
        pytest.param("", {}, None, None, id="no cgroups"),
    ],
)
def test_memory(tmp_path: Path, own: str, files: dict[str, str], limit: int | None, left: int | None) -> None:
    found = cgroups(tmp_path, own, files)
    assert found.memory_limit_bytes() == (None if limit is None else limit * MIB)
    assert found.memory_left_bytes() == (None if left is None else left * MIB)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, ALL, id="no quota"),
        pytest.param("0::/\n", {"cpu.max": "100000 100000\n"}, 1, id="one core"),
        pytest.param("0::/\n", {"cpu.max": "20000 100000\n"}, 1, id="a fifth of one"),
        pytest.param("0::/\n", {"cpu.max": "99900000 100000\n"}, ALL, id="more than there are"),
        pytest.param("0::/a\n", {"a/cpu.max": "max 100000\n", "cpu.max": "50000 100000\n"}, 1, id="above"),
        pytest.param(
            "1:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 1, id="old",
        ),
        pytest.param(
            "1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALL, id="old, none"
        ),
    ],
)  # fmt: skip
def test_a_quota_of_processor_time_counts_as_cores(tmp_path: Path, own: str, files: dict[str, str], cores: int) -> None:
    assert cgroups(tmp_path, own, files).cores() == cores


def test_kills_are_those_of_the_nearest_cgroup(tmp_path: Path) -> None:
    files = {"a/memory.events": "oom 3\noom_kill 2\n", "memory.events": "oom_kill 9\n"}
    assert cgroups(tmp_path, "0::/a\n", files).oom_kills() == 2
    assert cgroups(tmp_path, "0::/\n", {}).oom_kills() == 9
    assert Cgroups(tmp_path / "none", tmp_path / "none").oom_kills() == 0
