"""docs/ROLLOUT.md names the fields whose change replaces pods, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from shiftoperator import manifests

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ROLLOUT.md"


def test_every_field_that_replaces_pods_is_named() -> None:
    """Five were missing: who changed the placement lost pods unexpectedly."""
    said = re.search(r"^Pods are replaced when [^:]*:(.+?)\. ", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert said is not None
    parts = {f"{section}.{field}" for section, fields in manifests.POD_PARTS.items() for field in fields}
    assert set(re.findall(r"`([\w.]+)`", said[1])) == {*manifests.POD_FIELDS, *parts}
