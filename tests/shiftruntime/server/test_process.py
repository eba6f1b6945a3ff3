"""The front end as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SECONDS = 60


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, **variables},
    )


def test_the_front_end_never_imports_torch():
    """It must be up in a second and small; the engine process pays for torch."""
    code = "import sys, shiftruntime.__main__, shiftruntime.server; print([m for m in ('torch',) if m in sys.modules])"
    done = run("-c", code)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_a_missing_model_ends_with_1_and_leaves_its_reason(tmp_path):
    log = tmp_path / "log"
    ports = ["--port", "0", "--control-port", "0", "--ops-port", "0", "--openai-port", "0"]
    done = run("-m", "shiftruntime", "serve", str(tmp_path / "no.gguf"), *ports, SHIFT_TERMINATION_LOG=str(log))
    assert done.returncode == 1, done.stderr
    words = json.loads(log.read_text())
    assert words["reason"] == "ModelNotFound"
    assert f"ModelNotFound: {words['message']}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_token_ends_with_1(tmp_path):
    done = run("-m", "shiftruntime", "serve", "m.gguf", SHIFT_CONTROL_TOKEN_FILE=str(tmp_path / "token"))
    assert done.returncode == 1
    assert "no control token from SHIFT_CONTROL_TOKEN_FILE" in done.stderr
    assert "Traceback" not in done.stderr
