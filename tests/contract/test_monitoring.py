"""Every query of the alerts and of the dashboard is PromQL, and asks for metrics and labels that the code exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import promql_parser
import pytest
import yaml
from helpers.chart import CHART, ROOT
from helpers.exported_metrics import Series, exported
from shiftprotos import contract

Object = dict[str, Any]

ALERTS: Object = yaml.safe_load((CHART / "alerts.yaml").read_text())
DASHBOARD: Object = json.loads((CHART / "dashboard.json").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES),
    *(
        pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
        for panel in PANELS
        for target in panel["targets"]
    ),
]
# As $namespace and $name of the dashboard when nothing is chosen.
_VARIABLE = re.compile(r"\$(namespace|name)\b")
# Labels that a node of an expression hands up to those above it.
Labels = frozenset[str]


@cache
def known() -> dict[str, Series]:
    return exported()


def test_pages_have_every_metric_of_the_contract() -> None:
    """Else the tests below would know less than the code exports, or more."""
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in known()}
    declared = {value for name, value in vars(contract).items() if name.startswith("METRIC_")}
    assert declared - families == set()


@pytest.mark.parametrize("query", QUERIES)
def test_query_asks_for_what_is_exported(query: str) -> None:
    selectors = list(walk(promql_parser.parse(_VARIABLE.sub(".*", query))))
    assert selectors, "a query about nothing"
    for selector in selectors:
        assert selector.name in known(), f"nothing exports {selector.name}"
        series = known()[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in series.labels, f"{selector.name} has no label {matcher.name}"
            values = series.values.get(matcher.name)
            if values is not None and matcher.name in ("condition", "state", "outcome"):
                pattern = matcher.value if "Re" in str(matcher.op) else re.escape(matcher.value)
                for part in pattern.split("|"):
                    assert any(re.fullmatch(part, value) for value in values), f"{selector.name}: no {part}"


@pytest.mark.parametrize("query", QUERIES)
def test_labels_that_a_query_groups_or_matches_by_exist(query: str) -> None:
    labels_of(promql_parser.parse(_VARIABLE.sub(".*", query)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_labels_that_an_alert_speaks_of_are_in_its_result(rule: Object) -> None:
    result = labels_of(promql_parser.parse(rule["expr"]))
    told = {label for text in rule["annotations"].values() for label in re.findall(r"\$labels\.(\w+)", text)}
    assert told <= result, f"the result has only {sorted(result)}"
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert re.fullmatch(r"\d+m", rule["for"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_labels_of_a_legend_are_in_the_result(panel: Object) -> None:
    for target in panel["targets"]:
        result = labels_of(promql_parser.parse(_VARIABLE.sub(".*", target["expr"])))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= result


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(name.startswith("Shift") for name in names)


def test_a_rollout_paused_for_long_is_not_hidden_from_the_alert() -> None:
    """Paused is True of a suspension and of a paused rollout alike: the second silenced ShiftDeploymentNotReady."""
    groups = yaml.safe_load((CHART / "alerts.yaml").read_text())["groups"]
    [rule] = [r for group in groups for r in group["rules"] if r["alert"] == "ShiftDeploymentNotReady"]
    assert "Paused" not in rule["expr"]
    assert rule["expr"].endswith('unless on (namespace, name) shift_operator_pods{state="asked"} == 0')


def test_page_has_every_alert_as_it_is() -> None:
    page = (ROOT / "docs" / "MONITORING.md").read_text()
    rows = re.findall(r"^\| `(Shift\w+)` \| (\w+) \| (\w+) \|", page, re.M)
    assert rows == [(rule["alert"], rule["labels"]["severity"], rule["for"]) for rule in RULES]


def test_dashboard_is_sound() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie over each other"
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            [metric] = re.findall(r"label_values\((\w+)", variable["query"]["query"])
            assert variable["name"] in known()[metric].labels


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    queries = " ".join(str(param.values[0]) for param in QUERIES)
    declared = {value for name, value in vars(contract).items() if name.startswith("METRIC_")}
    assert {name for name in declared if name not in queries} == set()


def walk(node: Any) -> Iterator[Any]:
    """Every selector of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from walk(node.lhs)
        yield from walk(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from walk(argument)
    elif hasattr(node, "expr"):
        yield from walk(node.expr)


def labels_of(node: Any) -> Labels:
    """Labels that the result may have. Raises AssertionError for one that is asked for and not there."""
    if isinstance(node, promql_parser.VectorSelector):
        return frozenset(known()[node.name].labels)
    if isinstance(node, promql_parser.MatrixSelector):
        return labels_of(node.vector_selector)
    if isinstance(node, promql_parser.BinaryExpr):
        return _of_binary(node)
    if isinstance(node, promql_parser.AggregateExpr):
        inner = labels_of(node.expr)
        assert node.modifier is None or "By" in str(node.modifier.type), "only `by` is understood here"
        wanted = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
        assert wanted <= inner, f"by {sorted(wanted - inner)}, which the series do not have"
        return wanted
    if isinstance(node, promql_parser.Call):
        inner = frozenset().union(*(labels_of(argument) for argument in node.args))
        if node.func.name == "histogram_quantile":
            assert "le" in inner, "a quantile needs the buckets"
            return inner - {"le"}
        return frozenset() if node.func.name in ("scalar", "absent") else inner
    return labels_of(node.expr) if hasattr(node, "expr") else frozenset()


def _of_binary(node: Any) -> Labels:
    left, right = labels_of(node.lhs), labels_of(node.rhs)
    if node.modifier is not None and node.modifier.matching is not None:
        on = frozenset(node.modifier.matching.labels)
        assert on <= left & right, f"on {sorted(on)}: left has {sorted(left)}, right {sorted(right)}"
    return left or right


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("rate(shift_step_total[5m])", "nothing exports shift_step_total"),
        ('shift_operator_pods{gear="tp2"}', "has no label gear"),
        ('shift_operator_condition{condition="Redy"}', "no Redy"),
        ("sum by (gear) (shift_shifts_total)", "by \\['gear'\\]"),
        ("histogram_quantile(0.5, sum by (pod) (rate(shift_ttft_seconds_bucket[5m])))", "needs the buckets"),
    ],
)
def test_a_wrong_query_is_seen(query: str, complaint: str) -> None:
    def both_checks() -> None:
        test_query_asks_for_what_is_exported(query)
        test_labels_that_a_query_groups_or_matches_by_exist(query)

    with pytest.raises(AssertionError, match=complaint):
        both_checks()


def test_a_query_with_bad_syntax_is_seen() -> None:
    with pytest.raises(ValueError):
        promql_parser.parse("sum(rate(shift_shifts_total[5m])")
