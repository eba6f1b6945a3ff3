"""What a model's chat template may use: jinja's immutable sandbox, with the names that published templates need.

A template comes with the model, from whoever published it; clients supply only the data it reads, as plain JSON types.
This is the first line of two: it keeps a template from Python's inside. How much memory and time a template may use is
bounded by the process that it runs in (``renderer``), because no list of names can say that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import ext, nodes, parser, sandbox

_FILTERS = """
    abs capitalize count d default dictsort e escape first float format groupby indent int items join last length list
    lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title trim
    unique upper
"""
_GLOBALS = "cycler dict joiner namespace range"
_OF_TEXT = """
    capitalize casefold count endswith find format index isalnum isalpha isdecimal isdigit islower isnumeric isspace
    istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip
    split splitlines startswith strip swapcase title upper
"""
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(_OF_TEXT.split())),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    (list, frozenset({"copy", "count", "index"})),
    (tuple, frozenset({"count", "index"})),
    *((kind, frozenset[str]()) for kind in (int, float, complex, bytes, type)),
)


class TemplateRefused(jinja2.TemplateError):
    """The template called raise_exception: it cannot express this conversation."""


def environment(now: Callable[[], datetime]) -> jinja2.Environment:
    """What templates written for Hugging Face's ``apply_chat_template`` expect to find; ``now`` is their clock."""
    result = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, _Generation])
    result.filters = {name: filter_ for name, filter_ in result.filters.items() if name in _FILTERS.split()}
    result.filters["tojson"] = _tojson
    result.globals = {name: value for name, value in result.globals.items() if name in _GLOBALS.split()}
    result.globals["raise_exception"] = _raise_exception
    result.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    return result


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in _METHODS:
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)


class _Generation(ext.Extension):
    """``{% generation %}`` marks the model's own words for training; here it only shows what is inside."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefused(str(message))
