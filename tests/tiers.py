"""Runs the tests tier by tier, cheapest first, and says how long each took. Ends at the first tier that fails.

SHIFT_REQUIRE=e2e makes it an error that a tier cannot run here; otherwise the tier is left out and named.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
CLUSTER = (PYTHON, "localcluster/cluster.py")


@dataclass(frozen=True)
class Tier:
    name: str
    commands: tuple[tuple[str, ...], ...]
    limit_minutes: float  # of each command: against a hang, well above what a slow machine needs
    needs_cluster: bool = False


def pytest(*paths: str) -> tuple[str, ...]:
    return (PYTHON, "-m", "pytest", "-q", "--durations=5", "--durations-min=20", *paths)


def under(*names: str) -> tuple[str, ...]:
    """Parts of the runtime's tests."""
    return tuple(f"tests/shiftruntime/{name}" for name in names)


TIERS = (
    Tier("check", (("make", "--no-print-directory", "check"),), 10),
    Tier(
        "pure",
        (pytest("tests/shiftcore", "tests/shiftoperator", "tests/shiftsim", "tests/contract", "tests/examples"),),
        15,
    ),
    Tier("models", (pytest(*under("models", "chat", "parallel", "worker")),), 25),
    Tier(
        "front",
        (
            pytest(
                *under(
                    "server",
                    "test_native_grpc.py",
                    "test_openai_serve.py",
                    "test_readme_commands.py",
                    "test_serve.py",
                    "test_terminal_process.py",
                )
            ),
        ),
        25,
    ),
    Tier("engine", (pytest(*under("engine", "ranks")),), 25),
    # At a reduced count; `make campaign` has the full one.
    Tier("campaigns", (pytest(*under("fuzz", "failures")),), 25),
    # Ends a cluster that runs: these tests prove that up and down leave the machine as it was. The first up builds the
    # binary, alone, since that takes both cores.
    Tier(
        "cluster",
        ((*CLUSTER, "down"), (*CLUSTER, "up"), (*CLUSTER, "down"), pytest("tests/localcluster")),
        25,
        needs_cluster=True,
    ),
    # Needs the binary that the tier before has built, and neither root nor its network.
    Tier("operator", (pytest("tests/apiserver"),), 20),
    Tier("e2e", ((*CLUSTER, "up"), pytest("tests/e2e"), (*CLUSTER, "down")), 25, needs_cluster=True),
)


def main() -> int:
    os.chdir(ROOT)
    minutes: dict[str, float] = {}
    missing = why_no_cluster()
    if missing and os.environ.get("SHIFT_REQUIRE") == "e2e":
        print(f"the cluster tiers are required and cannot run: {missing}")
        return 1
    failed = ""
    for tier in TIERS:
        if tier.needs_cluster and missing:
            continue
        print(f"\n=== {tier.name} ===", flush=True)
        started = time.monotonic()
        ok = all(run(command, tier.limit_minutes) for command in tier.commands)
        minutes[tier.name] = (time.monotonic() - started) / 60
        if not ok:
            failed = tier.name
            break
    print("\nminutes per tier: " + ", ".join(f"{name} {value:.1f}" for name, value in minutes.items()))
    if missing:
        print(f"left out, for want of {missing}: " + ", ".join(tier.name for tier in TIERS if tier.needs_cluster))
    print(f"FAILED in {failed}" if failed else "all tiers passed")
    return 1 if failed else 0


def run(command: tuple[str, ...], limit_minutes: float) -> bool:
    try:
        return subprocess.run(command, timeout=limit_minutes * 60, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{' '.join(command)} did not end within {limit_minutes:g} minutes")
        return False


def why_no_cluster() -> str:
    """What this machine lacks for the tiers with a cluster; empty if nothing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"Linux on x86-64 (this is {platform.system()} on {platform.machine()})"
    if os.geteuid() != 0:
        return "root"
    return ""


if __name__ == "__main__":
    sys.exit(main())
