"""The words of `shift-runtime generate --help` and `chat --help`, and what their values become."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shiftruntime.engine.options import EngineOptions
from shiftruntime.server.request import Options

VERBS = ("generate", "chat")

_GENERATE = """\
Load a model, complete one prompt, and end. The text goes to stdout as it is made, everything else to stderr."""
_GENERATE_EXAMPLES = """\
examples:
  shift-runtime generate gemma.gguf "The capital of France is"
  shift-runtime generate gemma.gguf "Once upon a time" --ranks 2 --temperature 0 --max-tokens 64
      two ranks, the likeliest token each time
  shift-runtime generate llama/ - --ranks 4 --policy throughput < prompt.txt > text.txt
      the prompt from a file; always the base gear, so that the last line can be compared with --policy latency

Ctrl-C ends the answer. The last line says how fast it was and which gears computed it.
"""
_CHAT = """\
Load a model and talk with it, by the chat template in its files or the one that --chat-template names."""
_CHAT_EXAMPLES = """\
examples:
  shift-runtime chat gemma-it.gguf
  shift-runtime chat qwen3/ --ranks 2 --system "Answer in one sentence." --temperature 0.6
  shift-runtime chat base-model.gguf --chat-template template.jinja

Ctrl-C ends an answer, and twice the chat. /help lists what can be typed besides messages.
"""


@dataclass(frozen=True)
class TerminalOptions:
    engine: EngineOptions
    sampling: Options
    chat_template: Path | None
    model_defaults: bool
    prompt: str | None = None  # None: a chat
    system: str | None = None


def add_verbs(verbs: Any, add_engine: Sequence[Callable[[argparse.ArgumentParser], None]]) -> None:
    """``add_engine`` add what `serve` has for ranks, gears and engine."""
    for verb, summary, words, examples in (
        ("generate", "complete one prompt at the terminal", _GENERATE, _GENERATE_EXAMPLES),
        ("chat", "talk with a model at the terminal", _CHAT, _CHAT_EXAMPLES),
    ):
        parser = verbs.add_parser(
            verb,
            help=summary,
            description=words,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument(
            "model", metavar="MODEL", help="a .gguf file, a folder with config.json and safetensors, or hf://OWNER/NAME"
        )
        if verb == "generate":
            parser.add_argument("prompt", metavar="PROMPT", help="the text to complete; - reads it from stdin")
        else:
            parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
            parser.set_defaults(prompt=None)
        _add_sampling(parser)
        for add in add_engine:
            add(parser)
        parser.set_defaults(require_manifest=False, max_waiting=16)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("text", "What is left out is as the model's generation_config.json advises.")
    for option, kind, name, words in (
        ("--max-tokens", int, "N", "length of an answer (default: what the model has room for)"),
        ("--temperature", float, "T", "0: always the likeliest token; 1: as the model says"),
        ("--top-p", float, "P", "only the likeliest tokens that together have mass P"),
        ("--top-k", int, "K", "only the K likeliest tokens"),
        ("--min-p", float, "P", "only tokens at least P times as likely as the likeliest"),
        ("--seed", int, "N", "the same seed gives the same text (default: drawn)"),
        ("--chat-template", Path, "FILE", "jinja template instead of the model's own"),
    ):
        group.add_argument(option, type=kind, metavar=name, help=words)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be repeated")
    group.add_argument(
        "--sampling-defaults", choices=("model", "neutral"), default="model",
        help="neutral: plain sampling instead of what the model advises (default: model)",
    )  # fmt: skip


def terminal_options(values: argparse.Namespace, engine: EngineOptions) -> TerminalOptions:
    sampling = Options(
        temperature=values.temperature,
        top_p=values.top_p,
        top_k=values.top_k,
        min_p=values.min_p,
        seed=values.seed,
        max_tokens=values.max_tokens,
        stop=tuple(values.stop),
    )
    system = None if values.prompt is not None else values.system
    # One gear, or a rule that is given, leaves nothing to measure, and a person waits.
    measures = engine.ranks > 1 and engine.policy.gear is None and engine.policy.threshold_tokens is None
    engine = replace(engine, calibrate=engine.calibrate and measures)
    return TerminalOptions(
        engine, sampling, values.chat_template, values.sampling_defaults == "model", values.prompt, system
    )
