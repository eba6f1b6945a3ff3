"""Coverage-guided fuzzing of the byte targets with atheris, in a process of its own: libFuzzer ends it when it is done.

python tests/helpers/failures/coverage_fuzz.py frames -runs=100000 -seed=1
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also a script

from helpers.failures.outcome import Outcome

_SECONDS = 1800.0
_MAX_BYTES = 4096
_RSS_LIMIT_MIB = 1024  # "no unbounded memory": libFuzzer ends the process above it
# The weight of each. A template is tried in a process of its own, which is slow to replace when it is ended.
_TARGETS = {"frames": 100, "requests": 100, "openai": 100, "kserve": 100, "templates": 1}


def run(count: int, seed: int) -> Outcome:
    """About ``count`` inputs, shared by the targets."""
    shares = {target: max(1, count * weight // sum(_TARGETS.values())) for target, weight in _TARGETS.items()}
    bad: list[str] = []
    notes: dict[str, float | str] = {}
    for target, runs in shares.items():
        with tempfile.TemporaryDirectory(prefix="shift-fuzz-") as folder:
            command = [
                *(sys.executable, str(Path(__file__).resolve()), target, folder, f"-runs={runs}"),
                *(f"-seed={seed}", f"-rss_limit_mb={_RSS_LIMIT_MIB}", f"-artifact_prefix={folder}/", "-timeout=10"),
            ]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if ended.returncode != 0:
            bad.append(f"{target}: {ended.stdout[-1500:]}\n{ended.stderr[-3000:]}")
        coverage = re.findall(r"cov: (\d+)", ended.stderr)
        notes[f"{target}: branches reached"] = coverage[-1] if coverage else "none"
    return Outcome(sum(shares.values()), bad, notes)


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["shiftruntime.server", "shiftruntime.worker.frames"]):
        from helpers.failures import byte_targets, route_targets

    target = sys.argv.pop(1)
    samples: dict[str, Callable[[], list[bytes]]] = {
        "frames": lambda: [frame for frames in byte_targets.samples().values() for frame in frames],
        "requests": list,
        "openai": route_targets.openai_samples,
        "kserve": route_targets.kserve_samples,
        "templates": route_targets.template_samples,
    }
    for i, data in enumerate(samples[target]()):
        (Path(sys.argv[1]) / f"{target}-{i}").write_bytes(data)
    checks: dict[str, Callable[[bytes], object]] = {
        "frames": lambda data: byte_targets.check_frames(data, data[:2]),
        "requests": byte_targets.check_request,
        "openai": route_targets.check_openai,
        "kserve": route_targets.check_kserve,
        "templates": route_targets.TemplateTarget(),
    }

    def check(data: bytes) -> None:
        checks[target](data)

    atheris.Setup([*sys.argv, f"-max_len={_MAX_BYTES}"], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
