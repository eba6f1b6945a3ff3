"""A kubectl that answers from files, and the time of the golden pages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from shiftoperator.kubectl import cli, output, waiting

Object = dict[str, Any]
FOLDER = Path(__file__).parent
CASES = sorted(path.stem for path in (FOLDER / "cases").glob("*.json"))


def case(name: str) -> Object:
    resource: Object = json.loads((FOLDER / "cases" / f"{name}.json").read_text())
    return resource


@dataclass
class Result:
    code: int
    out: str
    err: str


class Shift:
    """Runs `kubectl shift`."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capfd = folder, capfd
        (folder / "answers").mkdir()

    def answer(self, key: str, *answers: Object | str) -> None:
        """To a call: VERB-RESOURCE[-NAME]; the last answer holds on."""
        for number, told in enumerate(answers, start=1):
            text = told if isinstance(told, str) else json.dumps(told)
            (self._folder / "answers" / f"{key}.{number}").write_text(text)

    def resource(self, *versions: Object) -> None:
        name = versions[0]["metadata"]["name"]
        self.answer(f"get-shiftdeployments.shiftparallel.dev-{name}", *versions)

    def resources(self, *listed: Object) -> None:
        self.answer("get-shiftdeployments.shiftparallel.dev", {"kind": "List", "items": list(listed)})

    def __call__(self, *arguments: str) -> Result:
        try:
            code = cli.main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = self._capfd.readouterr()
        return Result(code, captured.out, captured.err)

    @property
    def given(self) -> Object:
        """What kubectl read last from its stdin."""
        told: Object = json.loads((self._folder / "given").read_text())
        return told

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of every call of kubectl."""
        file = self._folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split("\t")[:-1] for line in lines]


@pytest.fixture
def shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shift:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").symlink_to(FOLDER / "fake-kubectl")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_KUBECTL", str(tmp_path))
    monkeypatch.setattr(output, "now", lambda: datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC))
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.02)
    return Shift(tmp_path, capfd)
