"""docs/RBAC.md has every right that the chart grants, and a reason for it."""

from __future__ import annotations

import pytest
from helpers.chart import of_kind, operator_rules, rendered
from helpers.rbac_table import rights_of, told, unused

MODES = {"cluster": (), "namespaced": ("--set", "watchNamespaces={team-a}")}


@pytest.mark.parametrize("mode", MODES)
def test_page_has_the_rights_of_the_chart(mode: str) -> None:
    rules = operator_rules(rendered(*MODES[mode]))
    granted = {right for rule in rules for right in rights_of(rule)}
    page = told("In every namespace that it serves")
    assert set(page) == granted
    assert all(len(reason) > 20 for reason in page.values())


def test_page_has_the_rights_of_the_leader() -> None:
    [role] = [r for r in of_kind(rendered(), "Role") if r["metadata"]["name"].endswith("-leader")]
    granted = {right for rule in role["rules"] for right in rights_of(rule)}
    assert set(told("In the operator's own namespace")) == granted


def test_a_right_said_to_be_unused_is_granted() -> None:
    granted = {*told("In every namespace that it serves"), *told("In the operator's own namespace")}
    assert set(unused()) <= granted
