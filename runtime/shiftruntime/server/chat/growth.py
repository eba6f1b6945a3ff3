"""How long a text will be that a chat template asks for, said before it is built. Pure.

What is not known here grows by no more than its arguments, or is bounded where it is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# In a format, widths and precisions; shorter numbers are years and the like and cannot do harm.
_LONG_NUMBER = re.compile(r"\d{5,}")


def of_format(text: str, arguments: tuple[Any, ...]) -> int:
    """Of ``text % arguments`` or ``text.format(*arguments)``; a width may also be among the arguments."""
    widths = sum(int(number[:20]) for number in _LONG_NUMBER.findall(text))
    if "*" in text or ":{" in text:
        widths += sum(abs(argument) for argument in arguments if isinstance(argument, int))
    return len(text) + widths + sum(len(argument) for argument in arguments if isinstance(argument, str))


def of_product(left: int, right: int) -> int:
    """Digits."""
    return (left.bit_length() + right.bit_length()) // 3


def of_power(base: int, exponent: int) -> int:
    """Digits."""
    return base.bit_length() * abs(exponent) // 3


def of_call(name: str, text: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> int:
    """Of a filter of jinja, or a method of str, by its name; 0 for those that do not grow."""
    estimate = _ESTIMATES.get(name)
    return estimate(text, (*arguments, *named.values())) if estimate is not None and isinstance(text, str) else 0


def _of_replace(text: str, arguments: tuple[Any, ...]) -> int:
    old, new = (*map(str, arguments[:2]), "", "")[:2]
    return len(text) + text.count(old) * len(new)


def _of_padding(text: str, arguments: tuple[Any, ...]) -> int:
    """Of what puts blanks, as many as a number says or a text has, around each line."""
    widths = (len(width) if isinstance(width, str) else width for width in arguments if isinstance(width, int | str))
    return len(text) + (text.count("\n") + text.count("\t") + 1) * max(widths, default=0)


_ESTIMATES: dict[str, Callable[[str, tuple[Any, ...]], int]] = {
    "replace": _of_replace,
    "format": of_format,
    **dict.fromkeys(("center", "indent", "ljust", "rjust", "zfill", "expandtabs"), _of_padding),
}
NAMES = tuple(_ESTIMATES)
