"""How kubectl is called, and what its failures become."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shiftoperator.kubectl import cli, client

from .conftest import Shift, case

RESOURCE = "shiftdeployments.shiftparallel.dev"


def test_options_that_choose_a_cluster_are_passed_on(shift: Shift) -> None:
    shift.resource(case("healthy"))
    options = ["-n", "team", "--context", "c", "--kubeconfig", "k", "--cluster", "cl", "--user", "u", "--as", "a"]
    assert shift("status", "llama", *options).code == 0
    [call] = shift.calls
    assert call[:5] == ["get", RESOURCE, "llama", "-o", "json"]
    assert call[5:-1] == ["--context=c", "--kubeconfig=k", "--cluster=cl", "--user=u", "--namespace=team", "--as=a"]
    assert call[-1] == "--request-timeout=30s"


def test_an_error_of_kubectl_is_shown_as_it_is(shift: Shift) -> None:
    done = shift("status", "nobody")
    assert (done.code, done.out) == (1, "")
    assert done.err == f'Error from server (NotFound): {RESOURCE} "nobody" not found\n'


def test_without_kubectl(shift: Shift, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = shift("status")
    assert done.code == 1
    assert done.err == "kubectl shift: kubectl is not on PATH; install it, or add its folder to PATH\n"


def test_a_kubectl_that_hangs_is_given_up(shift: Shift, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "kubectl").write_text("#!/bin/sh\nexec sleep 30\n")
    (slow / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:/usr/bin:/bin")
    monkeypatch.setattr(client, "CALL_SECONDS", 0.2)
    done = shift("status")
    assert (done.code, done.err) == (1, "kubectl shift: kubectl get did not end within 0 s\n")


@pytest.mark.parametrize("answer", ["", "<html>", "[]", "3"])
def test_an_answer_that_is_no_object(shift: Shift, answer: str) -> None:
    shift.answer(f"get-{RESOURCE}-llama", answer)
    done = shift("status", "llama")
    assert done.code == 1
    assert done.err.startswith("kubectl shift: kubectl answered")


@pytest.mark.parametrize("name", ["--raw=/secrets", "-A", "a b", "UPPER", "", "a/", "../x!"])
def test_a_name_is_never_an_option(shift: Shift, name: str) -> None:
    done = shift("status", "--", name)
    assert done.code == 2
    assert shift.calls == []


def test_a_name_as_kubectl_prints_it(shift: Shift) -> None:
    shift.resource(case("healthy"))
    assert shift("status", "shd/llama").code == 0
    assert shift.calls[0][2] == "llama"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["why"],
        ["status", "llama", "-A"],
        ["top", "llama", "-A"],
        ["why", "llama", "--condition", "Happy"],
        ["policy", "llama", "fast"],
        ["policy", "llama", "--threshold", "1", "--no-threshold"],
        ["policy", "llama", "auto", "--wait", "-1"],
        ["policy", "llama", "auto", "--wait", "nan"],
        ["drain", "p", "--wait", "soon"],
    ],
)
def test_usage(shift: Shift, arguments: list[str]) -> None:
    assert shift(*arguments).code == 2
    assert shift.calls == []


@pytest.mark.parametrize("verb", ["status", "why", "policy", "top", "drain"])
def test_help_teaches_with_examples(shift: Shift, verb: str) -> None:
    done = shift(verb, "--help")
    assert done.code == 0
    assert f"  kubectl shift {verb}" in done.out
    assert max(map(len, done.out.splitlines())) <= 120


@pytest.mark.parametrize("verb", ["status", "why", "policy", "top"])
def test_help_names_every_field_of_the_json(shift: Shift, verb: str) -> None:
    shift.resource(case("degraded"))
    text = shift(verb, "--help").out
    told = json.loads(shift(verb, "llama", "-o", "json").out)
    if verb == "top":
        [told] = told["items"]
    assert [name for name in told if name not in text] == []


def test_every_example_of_the_help_is_understood() -> None:
    for line in cli.parser().format_help().splitlines() + [
        line for told in cli.HELP.values() for line in told.epilog.splitlines()
    ]:
        if line.startswith("  kubectl shift "):
            words = line.split("|")[0].split("  ")[1].split()[2:]
            assert cli.parser().parse_args(words).verb == words[0]


def test_the_program(shift: Shift) -> None:
    """As kubectl starts it, with a pipe that closes early."""
    shift.resource(case("healthy"))
    command = [sys.executable, "-m", "shiftoperator.kubectl", "status", "llama"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"team/llama\n")
    early = ["/bin/sh", "-c", '"$@" | true', "sh", *command]
    closed = subprocess.run(early, capture_output=True, timeout=60, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")


KEY = "shiftparallel.dev/rotate-control-certificates"


def test_rotate_writes_the_time_of_the_api_server_on_the_resource(shift: Shift) -> None:
    """This machine says 2030. By its clock the authority was not replaced, or a year later."""
    tried = case("healthy")
    times = ["2026-03-01T10:00:00Z", "2026-11-22T04:00:00Z", None]
    tried["metadata"]["managedFields"] = [{"manager": "m", **({"time": time} if time else {})} for time in times]
    shift.answer(f"patch-{RESOURCE}-llama", tried, case("healthy"))
    done = shift("rotate", "llama")
    assert (done.code, done.err) == (0, "")
    trial, patch = shift.calls
    assert {"--dry-run=server", "--show-managed-fields"} <= set(trial)
    assert not any(option.startswith("--dry-run") for option in patch)
    assert json.loads(patch[5]) == {"metadata": {"annotations": {KEY: "2026-11-22T04:00:00Z"}}}
    assert "team/llama gets a new authority\nin place of one made before 2026-11-22T04:00:00Z" in done.out


def test_rotate_without_a_time_of_the_api_server_asks_for_nothing(shift: Shift) -> None:
    shift.answer(f"patch-{RESOURCE}-llama", case("healthy"))
    done = shift("rotate", "llama")
    assert (done.code, done.out, len(shift.calls)) == (1, "", 1)
    assert f"annotate llama with {KEY}=TIME instead" in done.err
