"""`down`: removes everything that `up` made, also after a crash, and then looks for what it forgot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

from localcluster import network, node, processes
from localcluster.containers import Containers
from localcluster.errors import ClusterError
from localcluster.processes import ProcessTable
from localcluster.settings import Settings

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_SECONDS = 10.0
CONTAINERD_SECONDS = 30.0
POLITE_SECONDS = 2.0


def down(settings: Settings) -> None:
    """Idempotent: each step looks at what is there, and none relies on an earlier run having ended well."""
    table = ProcessTable(settings.records, settings.logs)
    # Their data goes with them: waiting longer for a polite end would save nothing.
    table.stop(*(name for name in table.names() if name != "containerd"), grace_seconds=POLITE_SECONDS)
    if settings.marker.exists():
        kill_pods()
        remove_containers(settings, table)
    table.stop("containerd")
    end_stragglers(settings)
    unmount_all(settings)
    if settings.marker.exists():
        remove_pod_cgroups()
        network.teardown()
        network.restore_sysctls(settings.state / "sysctls.json")
        remove_fixed_folders(settings.state / "created-folders.json")
        remove_state(settings)
    if settings.run.exists():
        shutil.rmtree(settings.run)


def kill_pods() -> None:
    deadline = time.monotonic() + CGROUP_SECONDS
    while pids := pod_pids():
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise ClusterError("PodsStuck", f"pids {pids[:5]} in kubepods cgroups do not end; look at /proc/PID/stack")
        time.sleep(0.1)


def pod_cgroups() -> list[Path]:
    """Deepest first, over every mounted hierarchy of cgroup v1 and v2."""
    roots = [path for path in (CGROUP_ROOT / "kubepods", *CGROUP_ROOT.glob("*/kubepods")) if path.is_dir()]
    found = [Path(folder) for root in roots for folder, _, _ in os.walk(root)]
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def pod_pids() -> list[int]:
    pids: set[int] = set()
    for group in pod_cgroups():
        try:
            pids.update(int(line) for line in (group / "cgroup.procs").read_text().split())
        except (FileNotFoundError, OSError):
            continue  # removed between the listing and the read
    return [pid for pid in sorted(pids) if processes.start_ticks(pid) is not None]


def remove_containers(settings: Settings, table: ProcessTable) -> None:
    """Forgets all containers in containerd's store, which outlives `down` because it also holds the images."""
    if not (settings.containerd_root / "io.containerd.metadata.v1.bolt").exists():
        return
    containers = Containers(settings.containerd_socket)
    if table.alive("containerd") is None:
        # After a crash: only containerd itself can remove its containers from its store.
        table.ensure("containerd", node.containerd_command(settings))
    table.wait("containerd", containers.problem, CONTAINERD_SECONDS)
    containers.delete_all()


def stragglers(settings: Settings) -> list[tuple[int, int, str]]:
    """Ours by their command line: shims of our containerd, and components whose record was lost. Other control planes
    run the same programs, with files elsewhere: those of tests are not ours to end."""
    shims = processes.with_argument(f"-address {settings.containerd_socket}")
    components = processes.with_argument(f"{settings.cache}/")
    return shims + [found for found in components if "/shift-kube " in found[2] and f"{settings.state}/" in found[2]]


def end_stragglers(settings: Settings) -> None:
    processes.end([(pid, ticks) for pid, ticks, _ in stragglers(settings)])


def mounts_below(settings: Settings) -> list[str]:
    """Mount points in our folders, deepest first."""
    ours = tuple(f"{path}/" for path in (settings.state, settings.run, settings.containerd_root))
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    # The kernel writes a space in a path as \040.
    decoded = [point.encode().decode("unicode_escape") for point in points]
    return sorted((point for point in decoded if point.startswith(ours)), reverse=True)


def unmount_all(settings: Settings) -> None:
    for point in mounts_below(settings):
        network.run("umount", "--lazy", point)


def remove_pod_cgroups() -> None:
    deadline = time.monotonic() + CGROUP_SECONDS
    while groups := pod_cgroups():
        for group in groups:
            try:
                group.rmdir()
            except OSError:
                continue  # its last process is still being reaped: the next round gets it
        if pod_cgroups() and time.monotonic() > deadline:
            raise ClusterError("CgroupStuck", f"{groups[0]} cannot be removed; `cat {groups[0]}/cgroup.procs`")
        time.sleep(0.05)


def remove_fixed_folders(record: Path) -> None:
    created = json.loads(record.read_text()) if record.exists() else []
    for folder in created:
        if Path(folder).exists():
            shutil.rmtree(folder)


def remove_state(settings: Settings) -> None:
    """The marker goes last: if this is interrupted, the next `down` still knows that the rest is ours."""
    for entry in settings.state.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry != settings.marker:
            entry.unlink()
    shutil.rmtree(settings.state)


def leftovers(settings: Settings) -> list[str]:
    """What `down` should have removed and is still there."""
    found = [f"process {pid}: {command[:120]}" for pid, _, command in stragglers(settings)]
    found += [f"mount {point}" for point in mounts_below(settings)]
    found += [f"cgroup {group}" for group in pod_cgroups()]
    found += [f"folder {path}" for path in (settings.marker, settings.run) if path.exists()]
    return found + network.leftovers()
