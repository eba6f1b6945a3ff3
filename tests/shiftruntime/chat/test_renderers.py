"""What a template may use at most, and what becomes of the process that it runs in."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from shiftruntime.server.chat import renderers as renderers_module
from shiftruntime.server.chat import template as template_module
from shiftruntime.server.chat.render_messages import RenderLimits
from shiftruntime.server.chat.renderers import NoRenderer, Renderers
from shiftruntime.server.chat.template import ChatTemplateError, ChatTemplates, TemplateSources
from shiftruntime.server.refusal import Refusal

USER = [{"role": "user", "content": "hi"}]
# Little processor time, so that the tests are short; much on the clock, because the machine may be busy.
LIMITS = RenderLimits(cpu_seconds=0.4, wall_seconds=60.0)
BUSY = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TIME, SPACE = "of processor time$", "of memory$"
ALL = f"({TIME}|{SPACE})"  # which comes first depends on the machine


@pytest.fixture(scope="module")
def renderers() -> Renderers:
    return Renderers(LIMITS)


def templates(text: str, renderers: Renderers) -> ChatTemplates:
    return ChatTemplates(TemplateSources({"default": text}, {}, "test.json"), renderers=renderers)


def doubling(expression: str, times: int = 64) -> str:
    turns = f"{{% for i in range({times}) %}}{{% set ns.s = {expression} %}}{{% endfor %}}"
    return "{% set ns = namespace(s='aaaaaaaa') %}" + turns + "{{ ns.s | length }}"


COSTLY = {
    "round": ("{{ (messages | length) | round(3000000, 'floor') }}", ALL),
    "deep list": ("{% set ns = namespace(s=[messages]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}"
                  "{% endfor %}{{ ns.s | string | length }}", ALL),
    "indent of json": ("{{ messages | tojson(indent=300000000) }}", SPACE),
    "many texts": ("{% set ns = namespace(s=[]) %}{% for i in range(99999) %}"
                   "{% set ns.s = [ns.s, 'a' * (7000000 + i)] %}{% endfor %}", ALL),
    "nested loops": (BUSY, TIME),
    "filters in loops": ("{% for a in range(99999) %}{% for b in range(99999) | map('string') %}{% endfor %}"
                         "{% endfor %}", ALL),
    "product": ("{{ messages[0].content * 10000000000 }}", SPACE),
    "reversed product": ("{{ 10000000000 * [messages] }}", SPACE),
    "power": ("{{ (messages | length + 8) ** 99999999 }}", ALL),
    "sum": (doubling("ns.s + ns.s"), ALL),
    "joined": (doubling("ns.s ~ ns.s"), ALL),
    "block": ("{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(64) %}"
              "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}", ALL),
    "macro": ("{% macro twice(s) %}{{ s }}{{ s }}{% endmacro %}" + doubling("twice(ns.s)"), ALL),
    "tree of macros": ("{% macro t(n) %}{% if n %}{{ t(n - 1) }}{{ t(n - 1) }}{% endif %}{% endmacro %}{{ t(60) }}",
                       TIME),
    "format": ("{% set n = 1 %}{{ '%9999999999d' | format(n) }}", ALL),
    "method format": ("{{ '{:9999999999}'.format(messages | length) }}", SPACE),
    "replace": (doubling("ns.s | replace('a', 'aa')"), ALL),
    "method replace": ("{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}", ALL),
    "join": ("{{ (['a' * 1000000] * 1000000) | join('b') }}", ALL),
    "indent": ("{{ ('\\n' * 1000000) | indent(1000000, blank=true) }}", ALL),
    "squares": ("{% set ns = namespace(x=99) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}", ALL),
    "output": ("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "renders more than 8388608 characters"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), COSTLY.values(), ids=COSTLY)
def test_a_template_that_would_not_end_is_ended(text: str, words: str, renderers: Renderers) -> None:
    with pytest.raises(ChatTemplateError, match=rf"chat template 'default' of test\.json was ended: it .*{words}"):
        templates(text, renderers).render(USER)
    assert templates("{{ messages[0].content }}", renderers).render(USER) == "hi", "the next one is served"


COSTLY_CONSTANTS = {
    "power": "{{ 9 ** 99999999 }}",
    "list of a range": "{{ range(99999) | map('string') | list | length }}" * 1000,
    "format": "{{ '%9999999999d' % 1 }}",
    "product": "{{ ('a' * 100000000) ~ ('b' * 100000000) ~ ('c' * 100000000) }}",
    "round": "{{ 1 | round(3000000, 'floor') }}",
}


@pytest.mark.parametrize("text", COSTLY_CONSTANTS.values(), ids=COSTLY_CONSTANTS)
def test_constants_that_are_computed_while_a_template_compiles_are_bounded(text: str, renderers: Renderers) -> None:
    with pytest.raises(ChatTemplateError, match=r"chat template 'default' of test\.json was ended: it "):
        templates(text, renderers).render(USER)


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages | slice(6000000) | list }}",
        "{{ [1] | slice(6000000) | list | length }}",
        "{{ messages | batch(30000000, 0) | list }}",
        "{{ 'a b' | wordwrap(1, wrapstring='x' * 8000000) }}",
        "{{ 'a' | center(9999999999) }}",
    ],
)
def test_a_filter_that_no_published_template_uses_is_not_there(text: str, renderers: Renderers) -> None:
    with pytest.raises(ChatTemplateError, match="does not compile, line 1: No filter named"):
        templates(text, renderers)


def test_filters_and_methods_of_published_templates_are_there(renderers: Renderers) -> None:
    text = (
        "{{ 'a-b' | replace('-', '+') }} {{ 'x'.replace('x', 'y') }} {{ ['a', 1] | join(', ') }} "
        "{{ '-'.join(['b', 'c']) }} "
        "{{ '%s is %03d' % ('a', 7) }} {{ '%s' | format('b') }} {{ '{} {:>3}'.format('c', 'd') }} "
        "{{ 'a\nb' | indent(2) }} "
        "{{ 7 * 6 }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ messages[0].items() | list | length }} {{ messages[0].get('x') }}"
    )
    wanted = "a+b y a, 1 b-c a is 007 b c   d a\n  b 42 1024 3 2 None"
    assert templates(text, renderers).render(USER) == wanted


def test_a_rendering_ends_by_the_clock_too() -> None:
    found = templates(BUSY, Renderers(RenderLimits(cpu_seconds=60, wall_seconds=0.5)))
    with pytest.raises(ChatTemplateError, match=r"was ended: it takes more than 0\.5 s$"):
        found.render(USER)


def test_as_much_text_as_a_request_may_carry_is_rendered() -> None:
    words = "a" * (RenderLimits.characters - 4)
    found = templates("<{{ messages[0].content | trim }}>", Renderers(RenderLimits(cpu_seconds=60)))
    assert len(found.render([{"role": "user", "content": words + "🙂"}])) == len(words) + 3


def test_numbers_of_any_length_arrive_as_they_are(renderers: Renderers) -> None:
    found = templates("{{ messages[0].content | tojson }}", renderers)
    assert found.render([{"role": "tool", "content": [2**70, 0.1, None, "ß"]}]) == f'[{2**70}, 0.1, null, "ß"]'


def test_half_a_character_is_an_error_and_no_end(renderers: Renderers) -> None:
    with pytest.raises(ChatTemplateError, match="cannot be given this conversation"):
        templates("{{ messages[0].content }}", renderers).render([{"role": "user", "content": "\ud800"}])
    with pytest.raises(ChatTemplateError, match=r"fails on this conversation: .*surrogates not allowed"):
        templates("{{ '\\ud800' }}", renderers).render(USER)


# --- the process ---------------------------------------------------------------------------------------------------


def children() -> set[int]:
    """Renderers of this process."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return {int(line.split()[0]) for line in found.stdout.splitlines() if "chat.renderer" in line}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@pytest.fixture
def one() -> tuple[ChatTemplates, int]:
    """Templates of one process, and its id."""
    before = children()
    found = templates("{{ messages[0].content }}", Renderers(LIMITS, processes=1))
    (pid,) = children() - before
    return found, pid


def test_a_killed_process_is_started_again(one: tuple[ChatTemplates, int]) -> None:
    found, pid = one
    os.kill(pid, signal.SIGKILL)
    wait(lambda: gone(pid))
    with pytest.raises(ChatTemplateError, match=r"was ended: it ended its process: signal 9 \(SIGKILL\)"):
        found.render(USER)
    assert found.render(USER) == "hi"


def test_a_stopped_process_is_ended() -> None:
    renderers = Renderers(RenderLimits(cpu_seconds=60, wall_seconds=1.0), processes=1)
    before = children()
    found = templates("{{ messages[0].content }}", renderers)
    (pid,) = children() - before
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ChatTemplateError, match="takes more than 1 s"):
        found.render(USER)
    assert gone(pid)


def test_the_process_is_kept_between_conversations(one: tuple[ChatTemplates, int]) -> None:
    found, pid = one
    for _ in range(20):
        assert found.render(USER) == "hi"
    assert pid in children()


def test_the_process_gets_no_secrets_and_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    before = children()
    kept = templates("x", Renderers(LIMITS))
    (pid,) = children() - before
    assert b"HF_TOKEN" not in Path(f"/proc/{pid}/environ").read_bytes()
    limits = Path(f"/proc/{pid}/limits").read_text()
    for name in ("Max processes", "Max file size", "Max core file size"):
        (line,) = [line for line in limits.splitlines() if line.startswith(name)]
        assert line[len(name) :].split()[:2] == ["0", "0"], line
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    assert sum(link.startswith("socket:") for link in links) == 1
    assert kept.render(USER) == "x"


def test_the_process_ends_with_its_templates() -> None:
    before = children()
    found = templates("x", Renderers(LIMITS))
    (pid,) = children() - before
    del found
    wait(lambda: gone(pid))


@pytest.mark.parametrize("text", ["x", BUSY], ids=["idle", "at work"])
def test_the_process_dies_with_a_front_end_that_is_killed(text: str) -> None:
    program = f"""
import threading
from shiftruntime.server.chat.renderers import *
from shiftruntime.server.chat.render_messages import RenderLimits
from shiftruntime.server.chat.template import *
pool = Renderers(RenderLimits(cpu_seconds=2))
found = ChatTemplates(TemplateSources({{"default": {text!r}}}, {{}}, "x"), renderers=pool)
print(pool._idle.queue[-1].pid, flush=True)
threading.Thread(target=lambda: found.render([])).start()
threading.Event().wait(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    wait(lambda: gone(pid), 60)


def test_a_machine_that_can_start_no_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderers_module.sys, "executable", "/nowhere/python")
    with pytest.raises(NoRenderer, match="no process for chat templates can be started"):
        templates("x", Renderers(LIMITS))
    monkeypatch.setattr(renderers_module.sys, "executable", "/bin/false")
    with pytest.raises(NoRenderer, match="did not start: exit code 1"):
        templates("x", Renderers(LIMITS))


# --- several at once -----------------------------------------------------------------------------------------------


async def test_the_event_loop_goes_on_while_a_template_takes_long(renderers: Renderers) -> None:
    found = templates(BUSY, renderers)
    rendering = asyncio.create_task(found.render_soon(USER))
    turns = 0
    while not rendering.done():
        turns += 1
        await asyncio.sleep(0.01)
    assert turns > 5
    with pytest.raises(ChatTemplateError, match="of processor time"):
        await rendering


async def test_work_in_other_threads_does_not_wait_for_templates(renderers: Renderers) -> None:
    found = templates(BUSY, renderers)
    rendering = [asyncio.create_task(found.render_soon(USER)) for _ in range(40)]
    await asyncio.sleep(0.05)
    await asyncio.to_thread(str)
    assert not all(each.done() for each in rendering)
    for each in rendering:
        each.cancel()
    await asyncio.gather(*rendering, return_exceptions=True)


async def test_a_conversation_does_not_wait_behind_one_that_takes_long() -> None:
    found = templates(
        "{% if messages[0].content == 'long' %}" + BUSY + "{% endif %}x", Renderers(RenderLimits(cpu_seconds=2))
    )
    long = asyncio.create_task(found.render_soon([{"role": "user", "content": "long"}]))
    await asyncio.sleep(0.05)
    assert [await found.render_soon(USER) for _ in range(10)] == ["x"] * 10
    assert not long.done()
    with pytest.raises(ChatTemplateError, match="of processor time"):
        await long


async def test_many_conversations_at_once_are_all_rendered(renderers: Renderers) -> None:
    found = templates("{{ messages[0].content }}", renderers)
    texts = [str(number) for number in range(200)]
    made = await asyncio.gather(*(found.render_soon([{"role": "user", "content": text}]) for text in texts))
    assert made == texts
    assert len(children()) >= 1


async def test_more_conversations_than_may_wait_are_refused(
    renderers: Renderers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_module, "MAX_WAITING", 3)
    found = templates("x", renderers)
    ends = await asyncio.gather(*(found.render_soon(USER) for _ in range(5)), return_exceptions=True)
    assert [end for end in ends if end == "x"] == ["x"] * 3
    assert {end.reason for end in ends if isinstance(end, Refusal)} == {"QueueFull"}
    assert await found.render_soon(USER) == "x"
