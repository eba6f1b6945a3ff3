"""`shift-runtime manifest`: write the sums of a model's files, where they are known to be good."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic

from shiftruntime.errors import StartupError
from shiftruntime.models.manifest import write_manifest

_EVERY_SECONDS = 0.5


def write(model: str) -> int:
    """Exit code: 0 when the manifest is written, 1 for a failure."""
    shown = monotonic()

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal shown
        if sys.stderr.isatty() and monotonic() - shown > _EVERY_SECONDS:
            shown = monotonic()
            print(f"\r{done_bytes >> 20} of {total_bytes >> 20} MiB", end="", file=sys.stderr, flush=True)

    try:
        manifest = write_manifest(Path(model), progress)
    except StartupError as error:
        print(f"shift-runtime: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"shift-runtime: cannot write the manifest of {model}: {error}", file=sys.stderr)
        return 1
    where = manifest.path.parent
    print(f"{manifest.path}: {len(manifest.files)} files; check with: cd {where} && sha256sum -c {manifest.path.name}")
    return 0
