"""Rights as (group, resource with its subresource, verb), and those that docs/RBAC.md speaks of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

from helpers.chart import ROOT

Right = tuple[str, str, str]

PAGE = ROOT / "docs" / "RBAC.md"


def rights_of(rule: dict[str, Any]) -> Iterator[Right]:
    yield from product(rule["apiGroups"], rule["resources"], rule["verbs"])


def told(heading: str) -> dict[Right, str]:
    """The rights of the table under a heading, each with its reason: the last column."""
    section = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 4 or cells[0] in ("API group", "---"):
            continue
        groups, resources, verbs = (re.findall(r"`([^`]*)`", cell) for cell in cells[:3])
        for right in product([group.replace("core", "") for group in groups], resources, verbs):
            assert right not in found, f"{right} stands there twice"
            found[right] = cells[3]
    return found


def unused() -> dict[Right, str]:
    """Granted, and not asked for by the run of tests/apiserver/test_rbac.py."""
    return told("Granted for what the run does not show")
