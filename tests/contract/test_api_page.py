"""docs/API.md is what docs/generate_api.py makes of the CRD, and has every field."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import yaml
from helpers.chart import CRD_FILE, ROOT

GENERATOR = ROOT / "docs" / "generate_api.py"


@pytest.fixture(scope="module")
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_api", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_current(generator: Any) -> None:
    made = generator.page(yaml.safe_load(CRD_FILE.read_text()))
    assert made == (ROOT / "docs" / "API.md").read_text(), "renew it with: python docs/generate_api.py"


def test_every_field_is_on_the_page(generator: Any) -> None:
    """Counted apart from the generator: a field that it skips would be missed in both."""

    def fields(node: Any) -> int:
        if isinstance(node, list):
            return sum(map(fields, node))
        if not isinstance(node, dict):
            return 0
        own = len(node["properties"]) if isinstance(node.get("properties"), dict) else 0
        return own + sum(fields(child) for child in node.values())

    crd = yaml.safe_load(CRD_FILE.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    rows = [line for line in generator.page(crd).splitlines() if line.startswith("| `")]
    assert len(rows) == sum(fields(schema[name]) for name in ("spec", "status"))


def test_a_changed_field_changes_the_page(generator: Any) -> None:
    crd = yaml.safe_load(CRD_FILE.read_text())
    before = generator.page(crd)
    model = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["model"]
    model["properties"]["uri"]["description"] = "Somewhere else."
    model["properties"]["fresh"] = {"type": "integer", "minimum": 3, "maximum": 9, "default": 4}
    after = generator.page(crd)
    assert "Somewhere else." in after
    assert "| `fresh` | integer, 3..9 | `4` |" in after
    assert before != after
