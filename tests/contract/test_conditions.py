"""docs/CONDITIONS.md and the constants say the same."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from shiftcore import scaling
from shiftoperator import errors
from shiftoperator.kubectl import meanings
from shiftoperator.status import reasons
from shiftprotos import contract

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "CONDITIONS.md"
OPERATOR = ROOT / "operator" / "shiftoperator"
_ROW = re.compile(r"^\| `([A-Za-z]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$")

CONSTANTS = {name: value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
OF_RUNTIME = {value for name, value in vars(contract).items() if name.startswith("REASON_")}
OF_ERRORS = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, str)}


def reasons_of_the_core() -> set[str]:
    """What a decision to scale can carry."""
    return {str(reason) for reason in scaling.Reason}


def known() -> set[tuple[str, str]]:
    pairs = {(type_, reason) for type_, listed in reasons.OF_CONDITION.items() for reason in listed}
    return pairs | {(contract.CONDITION_SCALING_ACTIVE, reason) for reason in reasons_of_the_core()}


def documented() -> dict[tuple[str, str], list[tuple[str, str, str]]]:
    """By condition and reason: the other cells. A table belongs to the condition of its heading, else names them."""
    found = defaultdict(list)
    heading = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        row = _ROW.match(line)
        if row is None:
            continue
        of = [heading] if heading in contract.CONDITIONS else [part.strip() for part in row[2].split(",")]
        for type_ in of:
            found[type_, row[1]].append((row[2].strip(), row[3].strip(), row[4].strip()))
    # Reasons that a section takes over from the shared tables.
    return dict(found)


def taken_over() -> set[tuple[str, str]]:
    """`And `A`, `B` of …` below a condition's own table: written once in a shared table that may not name it."""
    found, heading = set(), ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("And `"):
            found |= {(heading, reason) for reason in re.findall(r"`([A-Z][A-Za-z]+)`", line)}
    return found


def test_every_reason_is_documented() -> None:
    assert known() - documented().keys() - taken_over() == set()


def test_nothing_documented_is_made_up() -> None:
    assert (documented().keys() | taken_over()) - known() == set()


def test_a_pair_is_explained_once_and_completely() -> None:
    assert [pair for pair, rows in documented().items() if len(rows) != 1] == []
    assert [pair for pair, [cells] in documented().items() if not all(len(cell) > 3 for cell in cells)] == []


def test_the_page_prints_what_kubectl_shift_says() -> None:
    """The sentences are written in meanings.toml; the page repeats them, table by table."""
    printed: dict[str, dict[str, list[str]]] = defaultdict(dict)
    heading = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        row = _ROW.match(line)
        if row is not None:
            printed[heading][row[1]] = [row[2].strip(), row[3].strip(), row[4].strip()]
    assert printed == meanings.tables()


def test_kubectl_shift_explains_every_reason() -> None:
    assert [pair for pair in sorted(known()) if meanings.meaning(*pair) is None] == []


def test_every_condition_has_a_section() -> None:
    headings = {line[3:] for line in PAGE.read_text().splitlines() if line.startswith("## ")}
    assert set(contract.CONDITIONS) <= headings
    assert set(reasons.OF_CONDITION) == set(contract.CONDITIONS)


def test_every_constant_is_carried_by_a_condition() -> None:
    carried = {reason for listed in reasons.OF_CONDITION.values() for reason in listed}
    assert set(CONSTANTS.values()) | OF_RUNTIME | OF_ERRORS == carried


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_every_constant_is_used(name: str) -> None:
    """A reason that no code gives would be documented for nothing."""
    value = CONSTANTS[name]
    used = [
        path
        for path in OPERATOR.rglob("*.py")
        if path.parent.name != "kubectl"  # it reads reasons and gives none
        for line in path.read_text().splitlines()
        if re.search(rf"\b{name}\b", line) and not (path.name == "reasons.py" and f'{name} = "' in line)
    ]
    assert used, f"{value} is given by no module of the operator"


def test_reasons_follow_kubernetes() -> None:
    assert [value for value in CONSTANTS.values() if not re.fullmatch(r"[A-Z][A-Za-z]{1,62}", value)] == []
    assert len(set(CONSTANTS.values())) == len(CONSTANTS)


def test_no_condition_has_a_reason_of_its_own_making() -> None:
    """Reasons are constants: a CamelCase string anywhere else is one that escaped the table."""
    strangers = []
    for path in [*(OPERATOR / "status").glob("*.py"), OPERATOR / "autoscale.py", OPERATOR / "retire.py"]:
        if path.name == "reasons.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in all_reasons():
                strangers.append(f"{path.name}:{node.lineno} {node.value}")
    assert strangers == []


@cache
def all_reasons() -> frozenset[str]:
    return frozenset(reason for _, reason in known())


def test_phases_of_start_up_are_those_of_the_contract() -> None:
    """The runtime names its phases by the contract only, and each has a reason."""
    assert tuple(reasons.OF_PHASE) == contract.PHASES
    for name in ("engine/startup.py", "server/fetching.py"):
        source = (ROOT / "runtime" / "shiftruntime" / name).read_text()
        assert re.findall(r"(?:_phase|PhaseUpdate)\(\s*\"", source) == []
        assert "contract.PHASE_" in source
