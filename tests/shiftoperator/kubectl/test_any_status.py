"""Whatever fits the CRD is shown: any status, any spec, on a pipe and on a narrow terminal."""

from __future__ import annotations

import io
import json
from typing import Any

from helpers import structural
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console, Group
from shiftoperator.kubectl import explain, output, pages, policy
from shiftoperator.kubectl.resource import read
from shiftoperator.status import reasons
from shiftprotos import contract

Object = dict[str, Any]
CRD = structural.crd()
STATUS, SPEC = CRD["status"], CRD["spec"]
# Merged into pods; nothing here reads them.
del SPEC["properties"]["podTemplate"], SPEC["properties"]["runtime"]

texts = st.text(max_size=30) | st.sampled_from(["[bold", "\x1b[31m", "\ud800", "a\nb", "x" * 300])
times = st.sampled_from(["2030-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.5-10:00"])
known = st.sampled_from([*contract.CONDITIONS, *sorted(set().union(*map(set, reasons.OF_CONDITION.values())))])


def fitting(schema: Object) -> st.SearchStrategy[Any]:
    """Values that the schema allows, those at its bounds among them."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("type") == "object":
        return _objects(schema)
    if schema.get("type") == "array":
        return st.lists(fitting(schema["items"]), max_size=min(3, schema.get("maxItems", 3)))
    if schema.get("type") == "integer":
        low, high = schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1)
        return st.sampled_from([low, high]) | st.integers(low, high)
    if schema.get("type") == "boolean":
        return st.booleans()
    if "\\d\\d:" in schema.get("pattern", ""):
        return times
    longest = schema.get("maxLength")
    return (texts | known).map(lambda text: text[:longest])


def _objects(schema: Object) -> st.SearchStrategy[Any]:
    properties = {name: fitting(child) for name, child in schema.get("properties", {}).items()}
    required = {name: properties.pop(name) for name in schema.get("required", ())}
    if "additionalProperties" in schema and isinstance(schema["additionalProperties"], dict):
        return st.dictionaries(texts, fitting(schema["additionalProperties"]), max_size=3)
    return st.fixed_dictionaries(required, optional=properties)


metadata = st.fixed_dictionaries({"name": texts, "namespace": texts}, optional={"generation": st.integers(0, 9)})
resources = st.fixed_dictionaries({"metadata": metadata, "spec": fitting(SPEC)}, optional={"status": fitting(STATUS)})


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(resources, st.sampled_from([20, 80, 300]))
def test_it_is_shown(resource: Object, width: int) -> None:
    deployment = read(resource)
    status, why, top = explain.status(deployment), explain.why(deployment), explain.top(deployment)
    shown = [
        *pages.listing([status], namespaces=True),
        *pages.page(status),
        *pages.why(why, None),
        *pages.top([top], namespaces=True),
    ]
    terminal = io.StringIO()
    Console(file=terminal, width=width, force_terminal=True, highlight=False, markup=False).print(Group(*shown))
    assert "\x1b[" in terminal.getvalue()
    found = output.plain(*shown)
    assert "\x1b" not in found
    found.encode()
    assert json.loads(json.dumps([status, why, top])) == [status, why, top]
    policy.display(deployment)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(fitting(STATUS))
def test_the_strategy_fits(status: Object) -> None:
    """Its lists may repeat keys, which the API server would refuse: more than fits is shown too."""
    validator = structural.status_validator()
    assert [problem for problem in structural.problems(validator, status) if "is there twice" not in problem] == []
