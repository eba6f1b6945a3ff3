"""The words of `shift-runtime fetch --help`, and what its values become."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shiftruntime.log import LogFormat, LogLevel
from shiftruntime.server.environment import Environment
from shiftruntime.server.usage import UsageError, parse_size

CACHE_HELP = "where fetched models are kept (default: shift/models in the user's cache)"


@dataclass(frozen=True)
class FetchOptions:
    uri: str
    cache: str | None = None
    limit_bytes: int | None = None  # a larger model is refused before it is fetched
    control_port: int | None = None  # None: nobody is told but the terminal
    host: str = "127.0.0.1"
    log_format: LogFormat = LogFormat.TEXT
    log_level: LogLevel = LogLevel.INFO
    environment: Environment = field(default_factory=Environment)


def add_fetch(verbs: Any, port: Callable[[str], int]) -> None:
    """``port`` is the type of a port number."""
    fetch = verbs.add_parser(
        "fetch",
        help="fetch a model and print its path",
        description="Fetch a model into the cache, resuming an earlier try, write its manifest and print its path.",
        allow_abbrev=False,
    )
    fetch.add_argument("model", metavar="URI", help="hf://OWNER/NAME[@REVISION][/FILE.gguf] or s3://BUCKET/PREFIX")
    fetch.add_argument("--model-cache", metavar="DIR", help=CACHE_HELP)
    fetch.add_argument("--limit", metavar="SIZE", help="refuse a larger model, for example 200Gi (default: none)")
    fetch.add_argument(
        "--control-port",
        type=port,
        metavar="N",
        help="tell the operator there how far it is, and log instead of drawing (default: no)",
    )
    fetch.add_argument("--host", default="127.0.0.1", help="address of that port (default: 127.0.0.1)")
    fetch.add_argument("--log-format", choices=("text", "json"), default="text", help="log lines on stderr")
    fetch.add_argument(
        "--log-level", choices=tuple(LogLevel), default=str(LogLevel.INFO), help="the least that is logged [info]"
    )


def fetch_options(values: argparse.Namespace, environment: Environment) -> FetchOptions:
    """Raises UsageError."""
    try:
        limit = None if values.limit is None else parse_size(values.limit)
    except UsageError as error:
        raise UsageError(f"--limit: {error}") from error
    return FetchOptions(
        values.model,
        values.model_cache,
        limit,
        values.control_port,
        values.host,
        LogFormat(values.log_format),
        LogLevel(values.log_level),
        environment,
    )
