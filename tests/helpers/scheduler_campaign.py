"""The stateful model of scheduler, blocks and gears with many more examples, for tests/campaign.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers.campaign_outcome import Outcome

EXAMPLES = 1_500
_MODEL = Path(__file__).parents[1] / "shiftcore" / "test_scheduler_model.py"
_LIMIT_SECONDS = 7200.0


def scheduler_model(seed: int, scale: float) -> Outcome:
    """Hypothesis shrinks what it finds and prints the steps that lead there."""
    examples = max(1, round(EXAMPLES * scale))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--hypothesis-seed={seed}", str(_MODEL)],
        env={**os.environ, "SHIFT_CAMPAIGN": str(examples)}, capture_output=True, text=True, timeout=_LIMIT_SECONDS,
        check=False,
    )  # fmt: skip
    notes = () if done.returncode == 0 else tuple(done.stdout.splitlines()[-80:])
    return Outcome(examples, "examples", int(done.returncode != 0), notes)
