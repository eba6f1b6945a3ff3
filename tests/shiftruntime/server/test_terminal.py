"""`shift-runtime generate` and `chat` with a stand-in engine, a pipe for a keyboard and real signals."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shiftruntime.__main__ import main
from shiftruntime.engine.client import EngineFailed
from shiftruntime.engine.messages import PhaseUpdate, Ready
from shiftruntime.server.chat.template import ChatTemplates, TemplateSources
from shiftruntime.server.options import parse_terminal
from shiftruntime.server.terminal.keyboard import Keyboard
from shiftruntime.server.terminal.run import _run
from shiftruntime.server.terminal.screen import Screen, ready_line, safe
from shiftruntime.server.usage import UsageError

WAIT_SECONDS = 10.0


@dataclass
class Desk:
    """A person's terminal."""

    engine_class: type
    text: Any
    fds: tuple[int, int]
    configure: Callable[[Any], None] = lambda engine: None
    terminal: bool = False
    engines: list[Any] = field(default_factory=list)
    out: io.StringIO = field(default_factory=io.StringIO)
    notes: io.StringIO = field(default_factory=io.StringIO)

    def start(self, *arguments: str) -> asyncio.Task[int]:
        options = parse_terminal(arguments)
        screen, keyboard = Screen(self.notes, self.terminal), Keyboard(self.fds[0])
        run = _run(options, screen, self._engine, lambda model: self.text, self.out, keyboard)
        return asyncio.create_task(run)

    def _engine(self, options: Any) -> Any:
        engine = self.engine_class(options)
        self.configure(engine)
        self.engines.append(engine)
        return engine

    def type(self, text: str) -> None:
        os.write(self.fds[1], text.encode())

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"not in time: {self.out.getvalue()!r} {self.notes.getvalue()!r}"
            await asyncio.sleep(0.005)


@pytest.fixture
async def desk(fake_engine_class, fake_text) -> AsyncIterator[Desk]:
    fds = os.pipe()
    yield Desk(fake_engine_class, fake_text, fds)
    for fd in fds:
        os.close(fd)


async def ended(task: asyncio.Task[int]) -> int:
    return await asyncio.wait_for(task, WAIT_SECONDS)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


async def test_a_prompt_is_completed(desk: Desk) -> None:
    arguments = ["--temperature", "0", "--max-tokens", "40", "--top-k", "3", "--seed", "9", "--stop", "zz"]
    assert await ended(desk.start("generate", "m.gguf", "abc", "--ranks", "2", *arguments)) == 0
    assert desk.out.getvalue() == "hello world\n"
    lines = desk.notes.getvalue().splitlines()
    assert lines[0] == "load: 2.0 MiB in 1.5 s"
    assert "gears tp2, sp2" in lines[1]
    assert lines[-1].startswith("12 tokens, ")
    assert "tokens/s, first after " in lines[-1]
    assert lines[-1].endswith("gears sp2 75 %, tp2 25 %, 16 of 3 prompt tokens from the cache")
    (engine,) = desk.engines
    sampling = engine.submitted[0].sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.top_k, sampling.seed) == (0, 40, 3, 9)
    assert engine.stopped


async def test_a_prompt_may_come_from_stdin(desk: Desk) -> None:
    desk.type("two\nlines\n")
    os.close(desk.fds[1])
    desk.fds = (desk.fds[0], os.dup(desk.fds[0]))
    assert await ended(desk.start("generate", "m.gguf", "-")) == 0
    assert bytes(desk.engines[0].submitted[0].prompt) == b"two\nlines"


async def test_ctrl_c_ends_the_answer_of_generate(desk: Desk) -> None:
    desk.configure = lambda engine: engine.flow.clear()
    task = desk.start("generate", "m.gguf", "abc")
    await desk.until(lambda: desk.engines and desk.engines[0].running)
    interrupt()
    assert await ended(task) == 130
    assert desk.engines[0].aborted
    assert desk.engines[0].stopped


async def test_ctrl_c_twice_ends_at_once(desk: Desk) -> None:
    def configure(engine: Any) -> None:
        engine.flow.clear()
        engine.deaf = True

    desk.configure = configure
    task = desk.start("generate", "m.gguf", "abc")
    await desk.until(lambda: desk.engines and desk.engines[0].running)
    interrupt()
    await desk.until(lambda: desk.engines[0].aborted)
    assert not task.done()
    interrupt()
    assert await ended(task) == 130
    assert desk.engines[0].stopped


async def test_ctrl_c_while_loading_ends(desk: Desk) -> None:
    desk.configure = lambda engine: engine.may_start.clear()
    task = desk.start("generate", "m.gguf", "abc")
    await desk.until(lambda: desk.engines)
    await asyncio.sleep(0.05)
    interrupt()
    assert await ended(task) == 130
    assert desk.engines[0].stopped


async def test_a_conversation_remembers_and_forgets(desk: Desk) -> None:
    desk.type("one\n\ntwo\n/stats\n/reset\nthree\n/nonsense\n/help\n/quit\n")
    assert await ended(desk.start("chat", "m.gguf", "--system", "sys")) == 0
    assert desk.out.getvalue() == "hello world\n" * 3
    prompts = [bytes(submit.prompt) for submit in desk.engines[0].submitted]
    assert prompts == [b"s:sys|u:one|", b"s:sys|u:one|a:hello world|u:two|", b"s:sys|u:three|"]
    notes = desk.notes.getvalue()
    assert "4 shifts between gears" in notes
    assert "the conversation is forgotten" in notes
    assert "/nonsense is no command" in notes
    assert "/reset   forget" in notes


async def test_the_end_of_the_input_ends_the_chat(desk: Desk) -> None:
    desk.type("one")
    os.close(desk.fds[1])
    desk.fds = (desk.fds[0], os.dup(desk.fds[0]))
    assert await ended(desk.start("chat", "m.gguf")) == 0
    assert desk.out.getvalue() == "hello world\n"


async def test_ctrl_c_ends_an_answer_and_not_the_chat(desk: Desk) -> None:
    task = desk.start("chat", "m.gguf")
    await desk.until(lambda: "/help lists" in desk.notes.getvalue())
    (engine,) = desk.engines
    engine.flow.clear()
    desk.type("one\n")
    await desk.until(lambda: engine.running)
    interrupt()
    await desk.until(lambda: not engine.running)
    engine.flow.set()
    desk.type("two\n")
    await desk.until(lambda: "hello world" in desk.out.getvalue())
    await desk.until(lambda: not engine.running)
    interrupt()
    await desk.until(lambda: "Ctrl-C again" in desk.notes.getvalue())
    interrupt()
    assert await ended(task) == 130


async def test_a_message_that_is_too_long_leaves_the_chat_going(desk: Desk) -> None:
    desk.type("x" * 99 + "\nshort\n/quit\n")
    assert await ended(desk.start("chat", "m.gguf")) == 0
    assert "/reset forgets the conversation" in desk.notes.getvalue()
    assert bytes(desk.engines[0].submitted[0].prompt) == b"u:short|"


async def test_thoughts_are_shown_and_not_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "{% for m in messages %}{{ m.content }}|{% endfor %}{# <think></think> #}"
    monkeypatch.setattr(type(desk.text), "chat", ChatTemplates(TemplateSources({"default": text}, {}, "t.json")))
    desk.configure = lambda engine: setattr(engine, "reply", b"<think>\nhm\n</think>\n\nyes")
    desk.terminal = True
    desk.type("one\ntwo\n/quit\n")
    assert await ended(desk.start("chat", "m.gguf")) == 0
    assert "\x1b[2mh\x1b[0m\x1b[2mm\x1b[0myes" in desk.out.getvalue()
    assert bytes(desk.engines[0].submitted[1].prompt) == b"one|yes|two|"


async def test_a_model_without_a_template_cannot_chat(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(desk.text), "chat", None)
    monkeypatch.setattr(type(desk.text), "chat_error", "m.gguf has no chat template")
    assert await ended(desk.start("chat", "m.gguf")) == 1
    assert "m.gguf has no chat template; give one with --chat-template" in desk.notes.getvalue()


async def test_an_engine_that_fails_ends_the_chat_with_the_reason(desk: Desk) -> None:
    task = desk.start("chat", "m.gguf")
    await desk.until(lambda: "/help lists" in desk.notes.getvalue())
    desk.engines[0].flow.clear()
    desk.type("one\n")
    await desk.until(lambda: desk.engines[0].running)
    desk.engines[0].die("rank 1 was killed")
    assert await ended(task) == 1
    assert "shift-runtime failed: RankFailed: rank 1 was killed" in desk.notes.getvalue()


async def test_a_failed_start_says_why(desk: Desk) -> None:
    desk.configure = lambda engine: setattr(engine, "start_failure", EngineFailed("OutOfMemory", "too large"))
    assert await ended(desk.start("generate", "m.gguf", "x")) == 1
    assert "shift-runtime failed: OutOfMemory: too large" in desk.notes.getvalue()
    assert desk.engines[0].stopped


async def test_a_refused_prompt_says_why(desk: Desk) -> None:
    assert await ended(desk.start("generate", "m.gguf", "x", "--temperature", "-1")) == 1
    assert "temperature -1.0 is outside" in desk.notes.getvalue()


def test_progress_is_one_line_on_a_terminal_and_few_elsewhere() -> None:
    updates = [PhaseUpdate("load", seconds, int(seconds) << 20, 40 << 20) for seconds in (1.0, 2.0, 11.0, 12.0)]
    updates.append(PhaseUpdate("load", 40.0, 40 << 20, 40 << 20, done=True))
    shown = io.StringIO()
    for update in updates:
        Screen(shown, terminal=True).phase(update)
    assert shown.getvalue().count("\n") == 1
    assert shown.getvalue().count("\r\x1b[K") == 5
    plain = io.StringIO()
    screen = Screen(plain, terminal=False)
    for update in updates:
        screen.phase(update)
    assert plain.getvalue().splitlines() == ["load: 11.0 MiB of 40.0 MiB after 11.0 s", "load: 40.0 MiB in 40.0 s"]


async def test_lines_of_a_file_are_read(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes("ä\r\nb\n\nlast".encode())
    with file.open("rb") as opened:
        keyboard = Keyboard(opened.fileno())
        assert [await keyboard.line() for _ in range(5)] == ["ä", "b", "", "last", None]


def test_measuring_is_left_out_where_it_decides_nothing() -> None:
    def calibrates(*arguments: str) -> bool:
        return parse_terminal(["generate", "m", "p", *arguments]).engine.calibrate

    assert calibrates("--ranks", "2")
    assert not calibrates()
    assert not calibrates("--ranks", "2", "--threshold", "9")
    assert not calibrates("--ranks", "2", "--policy", "sp2")


def test_a_wrong_command_line_ends_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "m.gguf"]) == 2
    assert "PROMPT" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--ranks"):
        parse_terminal(["chat", "m.gguf", "--ranks", "0"])


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_help_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_terminal([verb, "--help"])
    text = capsys.readouterr().out
    for word in ("examples:", "Ctrl-C", "--ranks", "--policy", "--threshold", "--temperature", "--dtype"):
        assert word in text


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters_of_the_model() -> None:
    text = "a\x1b[2J\x1b]0;title\x07b\r\x9b1m\x7fc\td\né"
    assert safe(text, _Terminal()) == "a[2J]0;titleb1mc\td\né"
    assert safe(text, io.StringIO()) == text


async def test_both_verbs_print_through_it(desk: Desk) -> None:
    desk.configure = lambda engine: setattr(engine, "reply", b"a\x1b[2Jb")
    desk.out = _Terminal()
    assert await ended(desk.start("generate", "m.gguf", "hi")) == 0
    assert desk.out.getvalue() == "a[2Jb\n"
    desk.type("hello\n/quit\n")
    assert await ended(desk.start("chat", "m.gguf")) == 0
    assert "\x1b" not in desk.out.getvalue()
    assert desk.out.getvalue().count("a[2Jb\n") == 2


@pytest.mark.parametrize(
    ("threshold", "words"),
    [(0, "threshold 0 tokens"), (64, "threshold 64 tokens"), (None, "gear pinned by the policy")],
)
def test_a_threshold_of_0_is_not_called_pinned(threshold: int | None, words: str) -> None:
    state: Any = SimpleNamespace(threshold_tokens=threshold)
    assert ready_line(Ready("llama", "float32", 64, 131, 63, ("tp2", "sp2")), state).endswith(f"; {words}")
