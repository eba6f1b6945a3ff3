#!/usr/bin/env python3
"""Writes API.md from the CRD: `python docs/generate_api.py`; tests/contract/test_api_page.py holds both together."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CRD = HERE.parent / "charts" / "shift" / "crds" / "shiftdeployments.yaml"
PAGE = HERE / "API.md"

Schema = dict[str, Any]

_INTRODUCTION = """\
# ShiftDeployment

Every field of `{group}/{version}`, kind `{kind}` (short name `{short}`). Written by `docs/generate_api.py` from the
CRD (`charts/shift/crds/shiftdeployments.yaml`), which the API server enforces; change the descriptions there.
`kubectl explain shd.spec` says the same.

[CONDITIONS.md](CONDITIONS.md) has the conditions and reasons of `status.conditions`, [ROLLOUT.md](ROLLOUT.md) and
[AUTOSCALING.md](AUTOSCALING.md) what the fields of these names do together, [MODELS.md](MODELS.md) how pods come to
their model, devices and nodes, [UPGRADE.md](UPGRADE.md) how a cluster gets a new version of this.
"""


def page(crd: Schema) -> str:
    names, [version] = crd["spec"]["names"], crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    told = {"group": crd["spec"]["group"], "version": version["name"], "kind": names["kind"]}
    parts = [_INTRODUCTION.format(**told, short=names["shortNames"][0])]
    if rules := list(_rules(schema)):
        parts.append("## Rules of the whole\n\n" + "\n".join(rules) + "\n")
    for name in ("spec", "status"):
        parts += _sections(name, schema["properties"][name], level=2)
    parts.append(_columns(version["additionalPrinterColumns"]))
    return "\n".join(parts)


def _sections(path: str, schema: Schema, level: int) -> Iterator[str]:
    """One section of an object, then those of the objects in it."""
    inner = _item(schema)
    lines = [f"{'#' * min(level, 3)} {path}", ""]
    if inner.get("description") or schema.get("description"):
        lines += [schema.get("description") or inner["description"], ""]
    lines += ["| field | type | default | |", "|---|---|---|---|"]
    required = inner.get("required", ())
    for name, child in inner["properties"].items():
        lines.append(f"| `{name}` | {_type(child)} | {_default(child, name in required)} | {_cell(_says(child))} |")
    if rules := list(_rules(inner)):
        lines += ["", "Rules:", "", *rules]
    yield "\n".join(lines) + "\n"
    for name, child in inner["properties"].items():
        if "properties" in _item(child):
            suffix = "[]" if child.get("type") == "array" else ""
            yield from _sections(f"{path}.{name}{suffix}", child, level + 1)


def _item(schema: Schema) -> Schema:
    """What a list is of; anything else is itself."""
    found: Schema = schema.get("items", schema)
    return found


def _type(schema: Schema) -> str:
    kind = schema.get("type", "")
    if schema.get("x-kubernetes-int-or-string"):
        kind = "integer or string"
    if "enum" in schema:
        return " ".join(f"`{value}`" for value in schema["enum"])
    if kind == "array":
        most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"list of {_type(schema['items'])}{most}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_type(schema['additionalProperties'])}"
    if any(part.get("format") == "date-time" for part in (schema, *schema.get("allOf", ()))):
        return "time"
    return f"{kind}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", {low}..{high}"
    if low is not None or high is not None:
        return f", from {low}" if low is not None else f", up to {high}"
    return f", at most {schema['maxLength']} characters" if "maxLength" in schema and schema["maxLength"] < 256 else ""


def _default(schema: Schema, required: bool) -> str:
    if required:
        return "**required**"
    default = schema.get("default")
    if default is None or default == {}:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _says(schema: Schema) -> str:
    text = schema.get("description", "")
    rules = [rule["message"] for rule in schema.get("x-kubernetes-validations", ()) if "properties" not in schema]
    if schema.get("pattern"):
        rules.append(f"must match `{schema['pattern']}`")
    return " ".join([text, *(f"({rule})" for rule in rules)]).strip()


def _rules(schema: Schema) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"- {rule['message']}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _columns(columns: list[Schema]) -> str:
    lines = ["## Columns of kubectl get", "", "| column | | from |", "|---|---|---|"]
    for column in columns:
        wide = " (with `-o wide`)" if column.get("priority") else ""
        lines.append(f"| {column['name']}{wide} | {_cell(column.get('description', ''))} | `{column['jsonPath']}` |")
    return "\n".join(lines) + "\n"


def main() -> int:
    PAGE.write_text(page(yaml.safe_load(CRD.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
