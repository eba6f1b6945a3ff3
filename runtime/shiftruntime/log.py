"""Log lines of the runtime: one line per event, text for a person or JSON for a machine.

A caller may pass ``extra={"fields": {...}}``; the sentence must be complete without them, they only spare a parser.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from enum import StrEnum
from typing import TextIO


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """As the logging module counts it."""
        return logging.getLevelNamesMapping()[self.name]


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def __init__(self, pod: str = "") -> None:
        super().__init__()
        self._constant = {"pod": pod} if pod else {}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._constant,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """``time level message``; the logger's name only helps where something went wrong."""

    def format(self, record: logging.LogRecord) -> str:
        where = f" [{record.name}]" if record.levelno >= logging.WARNING else ""
        line = f"{_timestamp(record)} {record.levelname:<7} {_one_line(record.getMessage())}{where}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


# Clients of HTTP that log every address they call: a signed one opens a private file to whoever reads the log.
_TELL_ADDRESSES = ("httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "urllib3")


def setup(log_format: LogFormat, pod: str = "", stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send log lines of this process to ``stream`` (default: stderr), from ``level`` up. Replaces earlier handlers."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(pod) if log_format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for client in _TELL_ADDRESSES:
        logging.getLogger(client).setLevel(logging.WARNING)


def _one_line(message: str) -> str:
    """Text of others may be in it: what would begin a line, or move the cursor, is written as an escape."""
    if message.isprintable():
        return message
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in message)


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
