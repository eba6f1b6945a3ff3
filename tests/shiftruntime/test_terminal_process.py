"""`shift-runtime chat` as a person has it: a real terminal, real ranks, and Ctrl-C, which reaches every process."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.chat_templates import QWEN3
from helpers.engines import children, is_alive, ranks_of
from helpers.tiny_models import save_llama

pytestmark = pytest.mark.ranks

SECONDS = 90.0


class Terminal:
    """A process whose stdin, stdout and stderr are one terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self.shown = ""
        self._fd = fd

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, text: str, count: int = 1) -> None:
        """Until ``text`` was shown ``count`` times."""
        deadline = time.monotonic() + SECONDS
        while self.shown.count(text) < count:
            assert time.monotonic() < deadline, f"{text!r} is not shown:\n{self.shown}"
            if select.select([self._fd], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._fd, 65_536).decode("utf-8", "replace")
                except OSError:  # the process ended
                    assert self.shown.count(text) >= count, self.shown
                    return

    def answer(self, characters: int) -> None:
        """Until so many more characters were shown, whatever they are."""
        before = len(self.shown)
        deadline = time.monotonic() + SECONDS
        while len(self.shown) < before + characters:
            assert time.monotonic() < deadline, f"no answer is shown:\n{self.shown}"
            if select.select([self._fd], [], [], 0.2)[0]:
                self.shown += os.read(self._fd, 65_536).decode("utf-8", "replace")


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    # The child opens the terminal by itself, so that it controls it and gets its Ctrl-C.
    launcher = (
        "import os, sys, runpy; fd = os.open(os.ttyname(0), os.O_RDWR); "
        "sys.argv = ['shift-runtime', *sys.argv[1:]]; runpy.run_module('shiftruntime', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", launcher, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(SECONDS)
        os.close(ours)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has no end-of-sequence token: what a random model says, and where it ends, differs between processors."""
    folder = tmp_path_factory.mktemp("tiny-chat")
    save_llama(folder, max_position_embeddings=4096, eos_token_id=None)
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "chat_template": QWEN3}))
    return folder


def test_ctrl_c_ends_an_answer_then_the_chat_and_leaves_nothing_behind(model: Path) -> None:
    options = ["--ranks", "2", "--dtype", "float32", "--kv-memory", "8Mi", "--threshold", "8"]
    with terminal("chat", str(model), *options, "--max-model-len", "4096") as screen:
        screen.until("/help lists")
        assert "\r\x1b[K" in screen.shown, "progress is a line that changes"
        (engine,) = children(screen.process.pid, "shiftruntime.engine")
        pids = [engine, *ranks_of(engine)]
        assert len(pids) == 3
        screen.type("tell me a long story\n")
        screen.until("tell me a long story\r\n")
        screen.answer(20)
        screen.type("\x03")
        screen.until("tokens/s, first after")
        assert all(is_alive(pid) for pid in pids), "Ctrl-C ends the answer only"
        screen.type("/stats\n")
        screen.until("shifts between gears")
        assert "gear tp2: " in screen.shown
        screen.type("\x03")
        screen.until("Ctrl-C again")
        screen.type("\x03")
        assert screen.process.wait(SECONDS) == 130
        deadline = time.monotonic() + 10
        while left := [pid for pid in pids if is_alive(pid)]:
            assert time.monotonic() < deadline, f"processes {left} outlive the chat"
            time.sleep(0.05)
