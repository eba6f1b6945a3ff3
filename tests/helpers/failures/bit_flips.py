"""Scenario: bits flip in the files of a model. Everyone must be seen before the model serves."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from helpers.failures.outcome import Outcome
from helpers.tiny_models import save_llama
from shiftruntime.errors import StartupError
from shiftruntime.models.manifest import verify, write_manifest


def run(count: int, seed: int) -> Outcome:
    """``count`` flips of one random bit, over all files of a folder and a single file with a manifest of its own."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="shift-flips-") as name:
        folder = Path(name) / "model"
        save_llama(folder)
        single = Path(name) / "single.gguf"
        shutil.copy(folder / "model.safetensors", single)  # its bytes do not matter to a sum
        for model in (folder, single):
            write_manifest(model)
            assert verify(model, required=True)
        files = [(folder, file) for file in sorted(folder.iterdir()) if file.name != "SHA256SUMS"] + [(single, single)]
        weights = [entry for entry in files if entry[1].suffix in (".safetensors", ".gguf")]
        bad: list[str] = []
        per_file: Counter[str] = Counter()
        for i in range(count):
            model, file = rng.choice(weights if i % 2 else files)
            per_file[file.name] += 1
            bad += _flip(model, file, rng.randrange(8 * file.stat().st_size))
    return Outcome(count, bad, {f"flips in {name}": flips for name, flips in sorted(per_file.items())})


def _flip(model: Path, file: Path, bit: int) -> list[str]:
    """What went wrong with one flip, which is undone."""
    _toggle(file, bit)
    try:
        verify(model)
    except StartupError as error:
        named = error.reason == "ModelDamaged" and str(file) in error.message and "expected" in error.message
        return [] if named else [f"bit {bit} of {file.name}: {error}"]
    finally:
        _toggle(file, bit)
    return [f"bit {bit} of {file.name} was not seen"]


def _toggle(file: Path, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(bit // 8)
        (value,) = opened.read(1)
        opened.seek(bit // 8)
        opened.write(bytes([value ^ (1 << bit % 8)]))
