"""The properties of a spec as the CRD declares them: what is added there is walked without being named here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from helpers.control_plane.components import CRD

Schema = dict[str, Any]
ITEM, KEY = "[]", "{}"  # steps into the items of a list and the values of a map


@dataclass(frozen=True)
class Property:
    path: tuple[str, ...]
    schema: Schema
    required: bool

    def __str__(self) -> str:
        return ".".join(self.path).replace(f".{ITEM}", ITEM).replace(f".{KEY}", KEY)

    @property
    def word(self) -> str:
        """Its own name, or that of the list or map that it is in."""
        return next(step for step in reversed(self.path) if step not in (ITEM, KEY))


@cache
def spec_schema() -> Schema:
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    found: Schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def properties(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[Property]:
    """Parents before what is in them."""
    for name, step, node in _inner(schema):
        here = (*path, *step)
        yield Property(here, node, name in schema.get("required", ()))
        yield from properties(node, here)


def _inner(schema: Schema) -> Iterator[tuple[str, tuple[str, ...], Schema]]:
    for name, node in schema.get("properties", {}).items():
        yield name, (name,), node
    if isinstance(schema.get("items"), dict):
        yield "", (ITEM,), schema["items"]
    if isinstance(schema.get("additionalProperties"), dict):
        yield "", (KEY,), schema["additionalProperties"]


def put(spec: Schema, prop: Property, value: Any, key: str, smallest: Any) -> Schema:
    """The spec with this value; `smallest` makes the least valid value of a schema, for what lies around it."""
    made: Schema = copy.deepcopy(spec)
    here: Any = made
    schema = spec_schema()
    for i, step in enumerate(prop.path):
        schema = _below(schema, step)
        name: Any = {ITEM: 0, KEY: key}.get(step, step)
        present = here[:1] if step == ITEM else [here[name]] if name in here else []
        inner = value if i == len(prop.path) - 1 else _around(schema, present, smallest)
        if step == ITEM:
            here[:] = [inner]
        else:
            here[name] = inner
        here = inner
    return made


def _around(schema: Schema, present: list[Any], smallest: Any) -> Any:
    """What is there already, with what must not be missing."""
    least = smallest(schema)
    if not present:
        return least
    return {**least, **present[0]} if isinstance(least, dict) else present[0]


def _below(schema: Schema, step: str) -> Schema:
    if step == ITEM:
        return dict(schema["items"])
    return dict(schema["additionalProperties"] if step == KEY else schema["properties"][step])
