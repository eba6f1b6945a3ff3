"""What examples/ offers is accepted by a real API server, to the last field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers.chart import ROOT
from helpers.control_plane.plane import ControlPlane
from helpers.control_plane.waiting import collection
from shiftoperator import spec as specs

SAMPLES = sorted([*(ROOT / "examples").glob("*.yaml"), *(ROOT / "examples" / "samples").glob("*.yaml")])


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_sample_is_accepted(plane: ControlPlane, path: Path) -> None:
    sample = yaml.safe_load(path.read_text())
    plane.admin.call("POST", f"{collection('default')}?dryRun=All&fieldValidation=Strict", sample)
    specs.parse(sample["spec"])


def test_there_are_samples() -> None:
    assert {path.stem for path in SAMPLES} >= {"one-gpu", "8xh200-70b", "latency-pinned", "night-batch"}
