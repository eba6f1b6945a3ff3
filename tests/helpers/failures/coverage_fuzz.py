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
_TARGETS = ("frames", "requests")


def run(count: int, seed: int) -> Outcome:
    """``count`` inputs, half to each target."""
    bad: list[str] = []
    notes: dict[str, float | str] = {}
    for target in _TARGETS:
        with tempfile.TemporaryDirectory(prefix="shift-fuzz-") as folder:
            command = [
                *(sys.executable, str(Path(__file__).resolve()), target, folder, f"-runs={count // len(_TARGETS)}"),
                *(f"-seed={seed}", f"-rss_limit_mb={_RSS_LIMIT_MIB}", f"-artifact_prefix={folder}/", "-timeout=10"),
            ]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if ended.returncode != 0:
            bad.append(f"{target}: {ended.stdout[-1500:]}\n{ended.stderr[-3000:]}")
        coverage = re.findall(r"cov: (\d+)", ended.stderr)
        notes[f"{target}: branches reached"] = coverage[-1] if coverage else "none"
    return Outcome(count, bad, notes)


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["shiftruntime.server", "shiftruntime.worker.frames"]):
        from helpers.failures import byte_targets

    target = sys.argv.pop(1)
    corpus = Path(sys.argv[1])
    for name, frames in byte_targets.samples().items() if target == "frames" else ():
        for i, data in enumerate(frames):
            (corpus / f"{name}-{i}").write_bytes(data)

    def frames(data: bytes) -> None:
        byte_targets.check_frames(data, data[:2])

    def requests(data: bytes) -> None:
        byte_targets.check_request(data)

    chosen: dict[str, Callable[[bytes], None]] = {"frames": frames, "requests": requests}
    atheris.Setup([*sys.argv, f"-max_len={_MAX_BYTES}"], chosen[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
