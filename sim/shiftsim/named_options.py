"""Which options a command line names: one that would do nothing there is refused, and a default is not."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from shiftsim.errors import UserError


class _Store(argparse.Action):
    """As argparse stores a value, and remembers that it was given."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, values)
        namespace.named = (*namespace.named, *self.option_strings[:1])


def remember(parser: argparse.ArgumentParser) -> None:
    """To be called before the options are added."""
    parser.register("action", None, _Store)
    parser.set_defaults(named=())


def refuse(options: argparse.Namespace, idle: Collection[str], where: str, fix: str) -> None:
    """Raises UserError if one of those is named that do nothing here, such as ``with --trace``; ``fix``: what to do."""
    named = [option for option in dict.fromkeys(options.named) if option in idle]
    if named:
        raise UserError(f"{' and '.join(named)} {'do' if len(named) > 1 else 'does'} nothing {where}; {fix}")
