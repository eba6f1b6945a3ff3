"""The front end as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
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


def test_a_download_that_stands_still_does_not_hold_up_the_end(tmp_path):
    """The other side takes the connection and says nothing, for longer than anybody waits for a pod's end."""
    ports = ["--port", "0", "--control-port", "0", "--ops-port", "0", "--openai-port", "0"]
    serve = [sys.executable, "-m", "shiftruntime", "serve", "s3://models/tiny", "--model-cache", str(tmp_path), *ports]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(SECONDS)
        variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b", "SHIFT_TERMINATION_LOG": str(tmp_path / "log"),
        }  # fmt: skip
        with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}) as process:
            try:
                connection, _ = silent.accept()
                with connection:
                    process.send_signal(signal.SIGTERM)
                    _, said = process.communicate(timeout=SECONDS / 2)  # a request to S3 alone may take 60 s
            finally:
                process.kill()
    assert process.returncode == 0, said
    assert "stopped during start-up" in said
    assert "Traceback" not in said
