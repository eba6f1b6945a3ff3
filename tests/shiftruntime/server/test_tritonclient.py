"""NVIDIA's own client against our KServe service, in an environment of its own (it pins another protobuf)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "helpers" / "triton_client.py"
INSTALL_SECONDS = 180
SECONDS = 60.0


@pytest.fixture(scope="module")
def triton() -> list[str]:
    """The command that runs the script; its packages are installed once, and locked beside it."""
    uv = shutil.which("uv")
    if uv is None:
        _absent("uv is not on PATH: tritonclient needs an environment of its own")
    install = [uv, "sync", "--quiet", "--locked", "--script", str(SCRIPT)]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if installed.returncode != 0 and "Failed to fetch" in installed.stderr:
        _absent(f"no package index: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    return [uv, "run", "--quiet", "--locked", "--script", str(SCRIPT)]


def _absent(why: str) -> NoReturn:
    """A skip, unless whoever runs the tests wants all of them."""
    if os.environ.get("SHIFT_REQUIRE"):
        pytest.fail(f"SHIFT_REQUIRE is set, and {why}")
    pytest.skip(why)


def test_what_is_absent_is_no_skip_where_all_tests_are_required(monkeypatch):
    monkeypatch.setenv("SHIFT_REQUIRE", "e2e")
    with pytest.raises(pytest.fail.Exception, match="uv is not on PATH"):
        _absent("uv is not on PATH")
    monkeypatch.delenv("SHIFT_REQUIRE")
    with pytest.raises(pytest.skip.Exception):
        _absent("uv is not on PATH")


@pytest.mark.timeout(INSTALL_SECONDS + 2 * SECONDS)
async def test_tritonclient_is_served(pod, triton):
    process = await asyncio.create_subprocess_exec(
        *triton, str(pod.ports.inference), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    seen = json.loads(out)
    assert (seen["live"], seen["ready"], seen["model_ready"]) == (True, True, [True, False])
    assert (seen["server"], seen["inputs"][0]) == ("shift-runtime", "text_input")
    assert seen["infer"] == {
        "text": ["hello"], "id": "q", "output_tokens": [5], "several": ["hell", "hell"], "from_ids": ["hello world"],
    }  # fmt: skip
    assert seen["refused"].startswith("StatusCode.INVALID_ARGUMENT: temperature -1.0 is outside 0..100")
    assert "".join(seen["stream"]["pieces"]) == "hello world"
    assert len(seen["stream"]["pieces"]) > 5
    assert ["top_p 2.0 is outside" in error for error in seen["stream"]["errors"]] == [True]
    assert 0 < pod.engine.submitted[0].timeout_seconds <= 1.0  # Triton's is in microseconds
