"""Every test belongs to a tier, so that none is left out of `make test`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_file_is_in_exactly_one_tier() -> None:
    spec = importlib.util.spec_from_file_location("tiers", ROOT / "tests" / "tiers.py")
    assert spec is not None
    assert spec.loader is not None
    tiers = importlib.util.module_from_spec(spec)
    sys.modules["tiers"] = tiers  # dataclasses look their module up
    try:
        spec.loader.exec_module(tiers)
    finally:
        del sys.modules["tiers"]
    named = [word for tier in tiers.TIERS for command in tier.commands for word in command if word.startswith("tests/")]
    for file in ROOT.glob("tests/**/test_*.py"):
        path = str(file.relative_to(ROOT))
        owners = [name for name in named if path == name or path.startswith(f"{name}/")]
        assert len(owners) == 1, f"{path} is in the tiers {owners}"
