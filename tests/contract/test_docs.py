"""What the documentation names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
    if ".venv" not in path.parts
)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
_CODE = re.compile(r"`[^`\n]*`")
_QUOTED = re.compile(r"`([\w./-]+)`")
# These tell what was.
_HISTORY = (ROOT / "docs" / "LOG.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/adr/*.md"))
# That there must be no such file, and a pattern.
_NAMED_THOUGH_ABSENT = {"operator/__init__.py", "docs/adr/NNNN-title.md"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = _CODE.sub("", document.read_text())  # a pattern is no link
    missing = [link for link in _LINK.findall(text) if not (document.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if d not in _HISTORY], ids=lambda path: str(path.relative_to(ROOT))
)
def test_paths_from_the_root_exist(document: Path) -> None:
    quoted = _QUOTED.findall(document.read_text())
    from_the_root = {name for name in quoted if name.find("/") > 0 and (ROOT / name.split("/")[0]).is_dir()}
    assert {name for name in from_the_root - _NAMED_THOUGH_ABSENT if not (ROOT / name).exists()} == set()


def test_every_feature_names_tests_that_exist() -> None:
    """A file without a folder lies beside the one named before it."""
    missing, folder, found = [], ROOT, 0
    for line in (ROOT / "docs" / "FEATURES.md").read_text().splitlines():
        for name in _QUOTED.findall(line):
            if name.startswith("tests/"):
                folder = (ROOT / name).parent
                path = ROOT / name
            elif re.fullmatch(r"test_\w+\.py", name):
                path = folder / name
            else:
                continue
            found += 1
            if not path.exists():
                missing.append(str(path.relative_to(ROOT)))
    assert missing == []
    assert found > 30
