"""Calls of functions in a model's text: what each family writes, split at every border, and what is no call."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftruntime.server.chat.call_parsers import HermesCalls, LlamaCalls, MistralCalls, NamedCall, RequiredCalls
from shiftruntime.server.chat.call_python import MAX_CHARACTERS, PythonCalls
from shiftruntime.server.chat.calls import CallParser

NAMES = ("weather", "now")
PARSERS: dict[str, Callable[[], CallParser]] = {
    "hermes": HermesCalls,
    "mistral": MistralCalls,
    "llama": lambda: LlamaCalls(NAMES),
    "python": lambda: PythonCalls(NAMES),
    "required": RequiredCalls,
    "named": lambda: NamedCall("weather"),
}
Result = tuple[str, list[tuple[str, str]]]
ARGUMENTS = '{"city": "K\\u00f6ln \\"}\\\\", "days": [1, {"a": "]}"}]}'


def parse(parser: CallParser, pieces: Sequence[str]) -> Result:
    content, calls = "", []
    for parsed in (*(parser.push(piece) for piece in pieces), parser.finish()):
        content += parsed.content
        for delta in parsed.calls:
            if delta.name is not None:
                assert delta.index == len(calls)
                calls.append((delta.name, ""))
            name, arguments = calls[delta.index]
            calls[delta.index] = (name, arguments + delta.arguments)
    return content, calls


def call(arguments: str = ARGUMENTS, name: str = "weather", key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


CASES: list[tuple[str, str, Result]] = [
    ("hermes", f"<tool_call>\n{call()}\n</tool_call>", ("", [("weather", ARGUMENTS)])),
    (
        "hermes",
        f"I look.\n<tool_call>{call()}</tool_call>\n<tool_call>\n{call('{}', 'now')}</tool_call> \nDone.",
        ("I look.Done.", [("weather", ARGUMENTS), ("now", "{}")]),
    ),
    ("hermes", f"<tool_call>{call()}", ("", [("weather", ARGUMENTS)])),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', ("", [("now", "{}")])),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', ("", [("now", "{}")])),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "id": 3, "name": "now"}</tool_call>', ("", [("now", '{"a": 1}')])),
    ("hermes", '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [("now", '{"a": 1}')])),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a"', ("", [("now", '{"a"')])),
    ("hermes", "a <tool_call> is a tag", ("a <tool_call> is a tag", [])),
    ("hermes", "<tool_call><tool_call>{}", ("<tool_call><tool_call>{}", [])),
    ("hermes", f"<tool_call><tool_call>{call('{}')}", ("<tool_call>", [("weather", "{}")])),
    ("hermes", "no call <tool_ca", ("no call <tool_ca", [])),
    ("hermes", " just words \n", (" just words \n", [])),
    ("mistral", f"[TOOL_CALLS] [{call()}, {call('{}', 'now')}]", ("", [("weather", ARGUMENTS), ("now", "{}")])),
    ("mistral", f'[TOOL_CALLS][{call()[:-1]}, "id": "abcdef123"}}]', ("", [("weather", ARGUMENTS)])),
    ("mistral", f"[TOOL_CALLS]{call()}", ("", [("weather", ARGUMENTS)])),
    ("mistral", f"Hm.[TOOL_CALLS]weather{ARGUMENTS}[TOOL_CALLS]now[ARGS]{{}}",
     ("Hm.", [("weather", ARGUMENTS), ("now", "{}")])),
    ("mistral", "[TOOL_CALLS]weather[CALL_ID]abc123[ARGS]{}", ("", [("weather", "{}")])),
    ("mistral", "[TOOL_CALLS] [", ("[TOOL_CALLS][", [])),
    ("mistral", "[TOOL_CALLS] words and {braces}", ("[TOOL_CALLS] words and {braces}", [])),
    ("mistral", "[TOOL_CALLS] words", ("[TOOL_CALLS] words", [])),
    ("llama", call(key="parameters"), ("", [("weather", ARGUMENTS)])),
    ("llama", f"\n<|python_tag|>{call(key='parameters')}", ("", [("weather", ARGUMENTS)])),
    ("llama", f"{call('{}')}; {call('{}', 'now')}", ("", [("weather", "{}"), ("now", "{}")])),
    ("llama", f'{{"type": "function", {call()[1:]}', ("", [("weather", ARGUMENTS)])),
    ("llama", call(name="unknown"), (call(name="unknown"), [])),
    ("llama", '{"answer": [1, 2]} and more', ('{"answer": [1, 2]} and more', [])),
    ("llama", f"An example: {call()}", (f"An example: {call()}", [])),
    ("llama", "{not json", ("{not json", [])),
    ("llama", f"{call('{}')}\nThere.", ("There.", [("weather", "{}")])),
    ("python", "[weather(city='Köln', days=[1, 2]), now()]",
     ("", [("weather", '{"city": "Köln", "days": [1, 2]}'), ("now", "{}")])),
    ("python", "```tool_code\nprint(weather(city=\"x\"))\n```", ("", [("weather", '{"city": "x"}')])),
    ("python", "```json\n" + call('{"a": true}', key="parameters") + "\n```\n", ("", [("weather", '{"a": true}')])),
    ("python", "now()", ("", [("now", "{}")])),
    ("python", f"[{call('{}')}]", ("", [("weather", "{}")])),
    ("python", "[weather(city=open('/etc/passwd'))]", ("[weather(city=open('/etc/passwd'))]", [])),
    ("python", "[unknown(city='x')]", ("[unknown(city='x')]", [])),
    ("python", "[weather('x')]", ("[weather('x')]", [])),
    ("python", "weather(**{'a': 1})", ("weather(**{'a': 1})", [])),
    ("python", "weather(city={1, 2})", ("weather(city={1, 2})", [])),
    ("python", "[weather(city='x'", ("[weather(city='x'", [])),
    ("python", "[1, 2, 3]", ("[1, 2, 3]", [])),
    ("python", "```\nx = 1\n```", ("```\nx = 1\n```", [])),
    ("python", "  Now it rains.", ("  Now it rains.", [])),
    ("required", f"[{call(key='parameters')}, {call('{}', 'now')}]", ("", [("weather", ARGUMENTS), ("now", "{}")])),
    ("required", "[", ("", [])),
    ("named", ARGUMENTS, ("", [("weather", ARGUMENTS)])),
    ("named", '{"a"', ("", [("weather", '{"a"')])),
]  # fmt: skip


@pytest.mark.parametrize(("family", "text", "wanted"), CASES)
def test_calls_of_every_family_at_every_border(family: str, text: str, wanted: Result) -> None:
    make = PARSERS[family]
    assert parse(make(), [text]) == wanted
    assert parse(make(), list(text)) == wanted
    for border in range(len(text) + 1):
        assert parse(make(), [text[:border], text[border:]]) == wanted


SCRAPS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "[ARGS]", "```json\n", "```tool_code\n", "\n```",
     "[", "]", "{", "}", '"', ":", ",", ";", " ", "\n", "\\", "weather", "now", "(", ")", "a=1", '"name": "now"',
     '"arguments": {"x": "<"}', '{"name": "weather", "parameters": {}}', '{"name": "other", "arguments": {"a": [1]}}',
     "words", "ß🙂"]
)  # fmt: skip


@pytest.mark.parametrize("family", PARSERS)
@given(scraps=st.lists(SCRAPS, max_size=12), data=st.data())
def test_any_text_reads_the_same_however_it_is_split(family: str, scraps: list[str], data: st.DataObject) -> None:
    text = "".join(scraps)
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    assert parse(PARSERS[family](), pieces) == parse(PARSERS[family](), [text])


@pytest.mark.parametrize("family", ["hermes", "mistral", "llama", "python"])
@given(text=st.text(alphabet='abc <[{`\n"()', max_size=40))
def test_text_without_calls_passes_unchanged(family: str, text: str) -> None:
    content, calls = parse(PARSERS[family](), list(text))
    assert (content, calls) == (text, [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("family", ["hermes", "mistral", "llama", "python", "required"])
@given(
    arguments=st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), min_size=1, max_size=3),
    width=st.integers(1, 9),
)
def test_arguments_arrive_as_they_were_written(family: str, arguments: list[dict[str, object]], width: int) -> None:
    written = [json.dumps(each) for each in arguments]
    calls = [call(each) for each in written]
    text = {
        "hermes": "".join(f"<tool_call>\n{each}\n</tool_call>\n" for each in calls),
        "mistral": f"[TOOL_CALLS] [{', '.join(calls)}]",
        "llama": "; ".join(calls),
        "python": f"[{', '.join(calls)}]",
        "required": f"[{','.join(calls)}]",
    }[family]
    content, found = parse(PARSERS[family](), [text[i : i + width] for i in range(0, len(text), width)])
    assert content == ""
    assert [(name, json.loads(each)) for name, each in found] == [("weather", each) for each in arguments]


@pytest.mark.parametrize("family", ["hermes", "mistral", "llama", "required", "named"])
def test_arguments_stream_before_the_call_is_complete(family: str) -> None:
    begin = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS][", "required": "["}.get(family, "")
    parser = PARSERS[family]()
    head = parser.push("" if family == "named" else f'{begin}{{"name": "weather", "arguments": ')
    body = parser.push('{"text": "a long')
    assert "".join(delta.arguments for delta in (*head.calls, *body.calls)) == '{"text": "a long'
    assert [delta.name for delta in (*head.calls, *body.calls) if delta.name] == ["weather"]


def test_an_endless_list_of_python_is_not_kept() -> None:
    parser = PythonCalls(NAMES)
    content, calls = parse(parser, ["[now(a='" + "x" * MAX_CHARACTERS, "')]"])
    assert (len(content), calls) == (MAX_CHARACTERS + 11, [])
    deep = "[" * 5000
    assert parse(PythonCalls(NAMES), [f"now(a={deep}"]) == (f"now(a={deep}", [])


def test_blank_lines_in_a_code_block_do_not_hold_up_the_server() -> None:
    text = "```json\n{" + "\n" * (MAX_CHARACTERS - 100) + "}\n```"
    parser = PythonCalls(NAMES)
    parser.push(text)
    began = time.process_time()
    assert parser.finish().content == text
    assert time.process_time() - began < 2, "an expression that backtracks takes half a minute"
