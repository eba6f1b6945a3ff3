"""What the cgroups of this process allow: its own and all above it, in version 2 and in version 1.

In a container they are mounted at the root, whatever the path that the kernel tells; outside, as in a systemd unit, the
limit lies in a folder below, and any folder above may set a tighter one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 60  # version 1 reports "no limit" as a number near 2**63


@dataclass(frozen=True)
class Cgroups:
    root: Path = Path("/sys/fs/cgroup")
    own: Path = Path("/proc/self/cgroup")

    def memory_limit_bytes(self) -> int | None:
        """The tightest limit; None without one."""
        return min((limit for limit, _ in self._memory()), default=None)

    def memory_left_bytes(self) -> int | None:
        """What may still be used under every limit; None without one. Page cache that can be given back is free."""
        return min((left for _, left in self._memory()), default=None)

    def oom_kills(self) -> int:
        """Processes that the kernel has killed for lack of memory so far, in the cgroup of this process alone."""
        nearest = next(self._folders("memory"), self.root)
        return max(_entry(nearest / "memory.events", "oom_kill"), _entry(nearest / "memory.oom_control", "oom_kill"))

    def cores(self) -> int:
        """Cores that this process may keep busy: those it may run on, or fewer under a quota, rounded up."""
        quotas = [math.ceil(share) for share in self._cpu_shares()]
        return max(1, min([len(os.sched_getaffinity(0)), *quotas]))

    def _memory(self) -> Iterator[tuple[int, int]]:
        for folder in self._folders("memory"):
            for limit_name, usage_name in (
                ("memory.max", "memory.current"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ):
                limit, usage = _number(folder / limit_name), _number(folder / usage_name)
                if limit is not None and usage is not None and limit < _UNLIMITED:
                    yield limit, max(0, limit - usage + _entry(folder / "memory.stat", "inactive_file"))

    def _cpu_shares(self) -> Iterator[float]:
        for folder in self._folders("cpu"):
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            words = _text(folder / "cpu.max").split()
            if len(words) == 2 and words[0].isdigit():
                quota, period = int(words[0]), int(words[1])
            if quota and period:
                yield quota / period

    def _folders(self, controller: str) -> Iterator[Path]:
        """The folder of this process and those above it, of both versions; the nearest first."""
        for line in _text(self.own).splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            mounts = [self.root / controllers, self.root / controller] if controllers else [self.root]
            mount = next((folder for folder in mounts if folder.is_dir()), None)
            if mount is None:
                continue
            below = PurePosixPath(path.lstrip("/"))
            if ".." in below.parts:  # outside of what this mount shows
                below = PurePosixPath()
            for part in [below, *below.parents] if below.parts else [below]:
                if (mount / part).is_dir():
                    yield mount / part


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _entry(path: Path, key: str) -> int:
    """The number behind a key; 0 without it."""
    words = (line.split() for line in _text(path).splitlines())
    return next((int(pair[1]) for pair in words if len(pair) == 2 and pair[0] == key), 0)
