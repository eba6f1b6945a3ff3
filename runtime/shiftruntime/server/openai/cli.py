"""Options of `shift-runtime serve` for OpenAI's routes and for chats."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shiftprotos import contract

from shiftruntime.server.chat.tools import Family


def add_openai(group: Any, port: Callable[[str], int]) -> None:
    """``port`` reads a port number."""

    def openai_port(text: str) -> int | None:
        if text == "any":
            return 0
        return port(text) or None

    group.add_argument(
        "--openai-port",
        type=openai_port,
        default=contract.OPENAI_PORT,
        metavar="N",
        help="OpenAI's routes over HTTP (/v1/chat/completions and others); 0: none, any: a free one "
        f"(default: {contract.OPENAI_PORT})",
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys that clients of the OpenAI port must send one of, one per line; read again when it changes "
        "(default: no key is asked for)",
    )
    add_chat(group)


def add_chat(group: Any) -> None:
    group.add_argument(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="jinja template that makes a prompt of a conversation, instead of the model's own",
    )
    group.add_argument(
        "--tool-call-parser",
        dest="tool_calls",
        type=_family,
        metavar="FAMILY",
        help=f"how the model writes calls of functions: {', '.join(Family)} (default: as its chat template shows)",
    )


def _family(text: str) -> Family | None:
    if text == "auto":
        return None
    try:
        return Family(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, {', '.join(Family)}") from None
