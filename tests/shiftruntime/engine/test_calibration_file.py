"""Costs that are kept: read back only for the same model on the same kind of machine, and never a reason to fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from shiftcore.costs import CostCurve, CostPoint
from shiftcore.layout import Gear
from shiftruntime.engine import startup
from shiftruntime.engine.calibration import Interrupted
from shiftruntime.engine.calibration_file import Provenance, read, write
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.startup import Startup
from shiftruntime.worker.messages import Done

GEARS = (Gear(1, 2), Gear(2, 1))
COSTS = {
    gear: CostCurve((CostPoint(1, 0.01, 0.001, 9), CostPoint(512, 0.3 / gear.sequence, 0.02, 9)), 1e-8)
    for gear in GEARS
}
HERE = Provenance(
    model="0123", dtype="bfloat16", exact=False, ranks=2, base_gear="sp2", max_num_seqs=64, max_batched_tokens=512,
    max_model_len=2048, block_size=16, device="cpu", processor="a processor", instruction_sets=("avx2",), cores=2,
    torch="2.15.0", runtime="0.1.0",
)  # fmt: skip


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    write(path, HERE, COSTS)
    return path


def test_costs_come_back_as_they_were(kept: Path) -> None:
    assert read(kept, HERE, GEARS) == COSTS
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]


@pytest.mark.parametrize("name", Provenance.__struct_fields__)
def test_whatever_differs_means_to_measure_anew(kept: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    value = getattr(HERE, name)
    other = (not value) if isinstance(value, bool) else value * 2 if isinstance(value, (int, tuple)) else f"{value}x"
    with caplog.at_level("INFO"):
        assert read(kept, msgspec.structs.replace(HERE, **{name: other}), GEARS) is None
    assert f"{name}: " in caplog.text


def test_other_gears_mean_to_measure_anew(kept: Path) -> None:
    assert read(kept, HERE, (*GEARS, Gear(4, 1))) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace("512", "1", 1).replace('"tokens": 512', '"tokens": 0'),
        lambda text: json.dumps(json.loads(text) | {"surprise": 1}),
        lambda text: text.replace("1e-8", "-1e-8"),
        lambda text: "",
    ],
)
def test_a_damaged_file_is_not_used_and_not_fatal(kept: Path, damage: object) -> None:
    assert callable(damage)
    damaged = damage(kept.read_text())
    assert damaged != kept.read_text()
    kept.write_text(damaged)
    assert read(kept, HERE, GEARS) is None


def test_no_file_and_no_folder_are_no_errors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = tmp_path / "nowhere" / "costs.json"
    assert read(missing, HERE, GEARS) is None
    write(missing, HERE, COSTS)
    assert str(missing) in caplog.text


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_a_serving_pod_measures_is_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """Found in review: only the start wrote the file, so that the next one took costs that were known to be old."""
    path = tmp_path / "costs.json"
    options = EngineOptions("/nowhere", 2, Gear(2, 1), calibration_file=str(path))
    ranks: Any = SimpleNamespace(last_step=0, run=lambda _: Done(1, 0))
    config: Any = {}

    def measure(run: Callable[..., object], *_: object, **__: object) -> object:
        run(GEARS[0], ())
        return COSTS

    monkeypatch.setattr(startup, "calibrate", measure)
    with pytest.raises(Interrupted) if interrupted else nullcontext():
        Startup(options, ranks, lambda _: None).calibrate(config, "float32", 64, 16, lambda: not interrupted)
    provenance = Provenance.of(options, config, "float32", 64)
    assert read(path, provenance, GEARS) == (None if interrupted else COSTS)
