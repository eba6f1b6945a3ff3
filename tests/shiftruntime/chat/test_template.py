"""Chat templates against transformers' apply_chat_template, and what a hostile or broken one comes to."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers
from helpers.chat_templates import FAMILIES, GEMMA, LLAMA3, QWEN3
from helpers.tiny_models import save_tokenizer
from shiftruntime.errors import StartupError
from shiftruntime.server.chat import template_source
from shiftruntime.server.chat.renderers import Renderers
from shiftruntime.server.chat.template import ChatTemplateError, ChatTemplates, TemplateSources

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city <today> & tomorrow, °C",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "now", "description": "Time", "parameters": {"type": "object"}}},
]
PLAIN = [
    {"role": "system", "content": "Be brief. <b>&\"'</b>"},
    {"role": "user", "content": "  Wie geht's? 你好 🙂  "},
    {"role": "assistant", "content": "Gut."},
    {"role": "user", "content": "{{ 7 * 7 }} {% raw %}"},
]
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather in Köln?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
        ],
    },
    {"role": "tool", "tool_call_id": "abcdef123", "content": '{"temperature": 7}'},
]
THOUGHT = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "6", "reasoning_content": "double"},
]
CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    *((family, PLAIN, {"add_generation_prompt": True}) for family in FAMILIES),
    *((family, PLAIN[1:], {"add_generation_prompt": False}) for family in FAMILIES),
    *((family, PLAIN, {"tools": TOOLS, "add_generation_prompt": True}) for family in FAMILIES),
    *((family, CALLED, {"tools": TOOLS, "add_generation_prompt": True}) for family in ("llama3", "qwen3", "mistral")),
    ("qwen3", THOUGHT, {"add_generation_prompt": True}),
    ("qwen3", THOUGHT[:3], {"add_generation_prompt": True, "enable_thinking": False}),
    ("llama3", PLAIN, {"add_generation_prompt": True, "date_string": "1 Jan 2030"}),
    ("gemma", [{"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]}], {}),
]


def save(folder: Path, **settings: Any) -> Path:
    save_tokenizer(folder)
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, **settings}))
    return folder


SHARED = Renderers()  # starts its processes when they are needed


def templates(text: str, **variables: str) -> ChatTemplates:
    return ChatTemplates(TemplateSources({"default": text}, variables, "test.json"), renderers=SHARED)


@pytest.mark.oracle
@pytest.mark.parametrize(("family", "messages", "options"), CASES)
def test_a_conversation_reads_as_transformers_renders_it(
    family: str, messages: list[dict[str, Any]], options: dict[str, Any], tmp_path: Path
) -> None:
    folder = save(tmp_path, chat_template=FAMILIES[family])
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    wanted = oracle.apply_chat_template(messages, tokenize=False, **options)
    asked = dict(options)
    tools, adds = asked.pop("tools", None), asked.pop("add_generation_prompt", False)
    found = ChatTemplates(template_source.read(folder), renderers=SHARED).render(messages, tools, adds, variables=asked)
    assert found == wanted
    assert found.strip()


def test_the_clock_of_a_template_is_given() -> None:
    sources = TemplateSources({"default": LLAMA3}, {"bos_token": "<s>"}, "test.json")
    text = ChatTemplates(sources, lambda: datetime(2031, 2, 3), SHARED).render([{"role": "user", "content": "x"}])
    assert "Today: 03 Feb 2031" in text


def test_a_named_template_serves_conversations_with_tools(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]
    found = ChatTemplates(template_source.read(save(tmp_path, chat_template=named)), renderers=SHARED)
    assert found.render(PLAIN) == "plain"
    assert found.render(PLAIN, TOOLS) == "2 tools"


def test_a_template_file_wins_over_the_settings(tmp_path: Path) -> None:
    folder = save(tmp_path, chat_template="from the settings")
    (folder / "chat_template.jinja").write_text("from the file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    found = ChatTemplates(template_source.read(folder), renderers=SHARED)
    assert (found.render(PLAIN), found.render(PLAIN, TOOLS)) == ("from the file", "with tools")
    other = tmp_path / "other.jinja"
    other.write_text("{{ bos_token }}given")
    assert ChatTemplates(template_source.read(folder, other), renderers=SHARED).render(PLAIN, TOOLS) == "<s>given"


def test_special_tokens_may_be_objects(tmp_path: Path) -> None:
    folder = save(
        tmp_path, chat_template="{{ bos_token }}|{{ eos_token }}", bos_token={"content": "<bos>", "lstrip": True}
    )
    assert ChatTemplates(template_source.read(folder), renderers=SHARED).render(PLAIN) == "<bos>|</s>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for %}", "does not compile"),
        ("{% endif %}", "does not compile"),
        ("{{ " + "(" * 50_000 + " }}", "does not compile: RecursionError"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "does not compile"),
        ("\ud800", "is no text"),
    ],
)
def test_a_template_that_does_not_compile_is_named(text: str, words: str) -> None:
    with pytest.raises(ChatTemplateError, match=f"chat template 'default' of test.json {words}"):
        templates(text)


def test_no_template_is_said(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        ChatTemplates(template_source.read(save(tmp_path)))


def test_a_refusal_of_the_template_reaches_the_client() -> None:
    with pytest.raises(
        ChatTemplateError, match=r"'default' of test\.json refuses the conversation: Roles must alternate"
    ):
        templates(GEMMA, bos_token="<bos>").render([{"role": "assistant", "content": "hello"}])


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages[0].nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ messages[0]['content'].__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append('x') }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{% include '/etc/passwd' %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'x'.encode() * 500000000 }}",
        "{{ (1).to_bytes(400000000, 'big') }}",
        "{{ 'aaa'.translate({97: 'b' * 1000000}) }}",
        "{{ lipsum(n=1000000) }}",
        "{{ dict.fromkeys(range(9)) }}",
    ],
)
def test_what_the_sandbox_forbids_or_cannot_do_is_an_error(text: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(ChatTemplateError, match="chat template 'default'"):
        templates(text).render(messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_a_long_conversation_fits() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"line {i}"} for i in range(2001)]
    assert templates(QWEN3).render(messages).count("<|im_start|>") == 2002


def test_own_variables_cannot_be_replaced() -> None:
    with pytest.raises(ChatTemplateError, match="messages cannot be given"):
        templates("x").render(PLAIN, variables={"messages": []})


@pytest.mark.oracle
@pytest.mark.parametrize("words", [" Once upon ", "a", "n", "assistant", "<|im_end|>", "</s>", "\\n", "user\nmodel"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_message_is_continued_as_transformers_does_it(family: str, words: str, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": words}, {"role": "assistant", "content": words}]
    folder = save(tmp_path, chat_template=FAMILIES[family])
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    wanted = oracle.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    found = ChatTemplates(template_source.read(folder), renderers=SHARED)
    assert found.render(messages, continue_final_message=True) == wanted
    assert wanted.endswith((words, words.strip()))


def test_what_cannot_be_continued_is_said() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]
    with pytest.raises(ChatTemplateError, match="has no words"):
        templates("{{ messages[1].content }}").render(messages, continue_final_message=True)
    with pytest.raises(ChatTemplateError, match="does not show the last message"):
        templates("nothing").render(messages[:1], continue_final_message=True)


def test_a_template_that_is_no_text_is_damage(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="neither a text nor a list"):
        template_source.read(save(tmp_path, chat_template=[{"name": "x"}]))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(StartupError, match="cannot be read"):
        template_source.read(save(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("x" * (template_source.MAX_TEMPLATE_BYTES + 1))
    with pytest.raises(StartupError, match="at most"):
        template_source.read(save(tmp_path))
