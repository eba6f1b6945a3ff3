"""Where a model's chat template runs: jinja without a way to Python, with counted work and bounded text.

A template comes with the model, from whoever published it; clients supply only the data it reads. jinja's sandbox keeps
it from Python's inside. The budget here ends a template that would not end by itself: every turn of a loop and every
call is counted, and products, sums and joined texts cannot grow without limit. Data goes in as plain JSON types only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from time import monotonic
from typing import Any, NoReturn

import jinja2
from jinja2 import ext, nodes, parser, runtime, sandbox

from shiftruntime.server.chat import growth

MAX_WORK = 2_000_000  # turns of loops and calls of one rendering
MAX_SECONDS = 5.0
MAX_CHARACTERS = 8 * 2**20  # of the rendering, and of any text inside it
MAX_DIGITS = 2**14  # of a number: products of longer ones hold up the process
_LOOK_AT_CLOCK_EVERY = 256


class TemplateTooCostly(jinja2.TemplateError):
    """The template asked for more than a rendering may take."""


class TemplateRefused(jinja2.TemplateError):
    """The template called raise_exception: it cannot express this conversation."""


@dataclass
class Budget:
    """What is left for one rendering."""

    deadline: float  # monotonic seconds
    work: int = MAX_WORK

    def spend(self) -> None:
        self.work -= 1
        if self.work < 0:
            raise TemplateTooCostly(f"it takes more than {MAX_WORK} loop turns and calls")
        if self.work % _LOOK_AT_CLOCK_EVERY == 0 and monotonic() > self.deadline:
            raise TemplateTooCostly(f"it takes more than {MAX_SECONDS:g} s")


_budget: ContextVar[Budget] = ContextVar("template budget")


@contextmanager
def budget() -> Iterator[None]:
    """A rendering inside has the limits of this module."""
    token = _budget.set(Budget(monotonic() + MAX_SECONDS))
    try:
        yield
    finally:
        _budget.reset(token)


def environment(now: Callable[[], datetime]) -> jinja2.Environment:
    """What templates written for Hugging Face's ``apply_chat_template`` expect to find; ``now`` is their clock."""
    result = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[ext.loopcontrols, _Generation],
        optimized=False,  # else constants are computed while the template compiles, where nothing counts
    )
    for name in ("join", *growth.NAMES):
        if name in result.filters:
            result.filters[name] = _guarded(name, result.filters[name])
    result.filters["tojson"] = _tojson
    result.filters["shift_counted"] = _counted
    result.filters["shift_bounded"] = _bounded
    result.globals["raise_exception"] = _raise_exception
    result.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    return result


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def call(self, context: runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _budget.get().spend()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps ``text.format``
        if isinstance(text := getattr(method, "__self__", None), str):
            args = _measured(method.__name__, text, args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        return _bounded(result) if isinstance(result, str) else result

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        _check_growth(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The template's tree with its loops counted and its joined texts bounded."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "shift_counted")
        for block in tree.find_all(nodes.AssignBlock):
            block.filter = _filtered(block.filter, "shift_bounded")
        _bound_concatenations(tree)
        tree.set_environment(self)
        return tree


class _Generation(ext.Extension):
    """``{% generation %}`` marks the model's own words for training; here it only shows what is inside."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bound_concatenations(node: nodes.Node) -> None:
    """Put a bound around each ``a ~ b``: doubling a text in a loop would fill the memory within few turns."""
    for field in node.fields:
        value = getattr(node, field)
        if isinstance(value, list):
            setattr(node, field, [_bound_concatenation(item) for item in value])
        else:
            setattr(node, field, _bound_concatenation(value))


def _bound_concatenation(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _bound_concatenations(value)
    return _filtered(value, "shift_bounded") if isinstance(value, nodes.Concat) else value


def _filtered(value: nodes.Node | None, name: str) -> nodes.Filter:
    """``value`` None: what the surrounding block renders."""
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno if value is not None else 1)


def _counted(items: Iterable[Any]) -> Iterator[Any] | list[Any] | Iterable[Any]:
    """The same items, each counted. Lists stay lists, because loops ask for their length; so does undefined."""
    if isinstance(items, jinja2.Undefined):
        return items
    if isinstance(items, Mapping):
        items = list(items)
    return _Counted(items) if hasattr(items, "__len__") else _count(items)


class _Counted:
    """A sized iterable that counts what is taken from it."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return _count(self._items)


def _count(items: Iterable[Any]) -> Iterator[Any]:
    spend = _budget.get().spend
    for item in items:
        spend()
        yield item


def _bounded(text: Any) -> Any:
    return _checked_length(text, len(text))


def _check_growth(operator: str, left: Any, right: Any) -> None:
    sizes = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
    if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
        digits = growth.of_product(left, right) if operator == "*" else growth.of_power(left, right)
        if digits > MAX_DIGITS:
            raise TemplateTooCostly(f"it builds a number of {digits} digits; at most {MAX_DIGITS} are allowed")
    elif operator == "%" and isinstance(left, str):
        _checked_length(None, growth.of_format(left, right if isinstance(right, tuple) else (right,)))
    elif operator == "+":
        _checked_length(None, sum(sizes))
    elif operator == "*" and sizes:
        counts = [value for value in (left, right) if isinstance(value, int)]
        _checked_length(None, max(sizes) * max([1, *counts]))


def _guarded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja whose result is measured before it is built."""
    given = 1 if hasattr(filter_, "jinja_pass_arg") else 0  # what jinja puts in front of the value

    @wraps(filter_)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        front, value, rest = args[:given], args[given], args[given + 1 :]
        if name == "join":
            separator = rest[0] if rest else kwargs.get("d", "")
            return filter_(*front, _count_characters(value, len(str(separator))), *rest, **kwargs)
        return filter_(*front, value, *_measured(name, value, rest, kwargs), **kwargs)

    return guarded


def _measured(name: str, text: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call, once it is known that its result is not too long."""
    if name == "join" and args:
        return (_count_characters(args[0], len(text)), *args[1:])
    _checked_length(None, growth.of_call(name, text, args, kwargs))
    return args


def _count_characters(items: Iterable[Any], separator: int) -> Iterator[Any]:
    """The same items, until their texts are too long together."""
    characters = 0
    for item in items:
        characters += separator + (len(item) if isinstance(item, str) else 1)
        yield _checked_length(item, characters)


def _checked_length(value: Any, length: int) -> Any:
    if length > MAX_CHARACTERS:
        raise TemplateTooCostly(f"it builds a text of {length} characters; at most {MAX_CHARACTERS} are allowed")
    return value


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
