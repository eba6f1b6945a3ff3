"""What the reading verbs print. The golden pages are written anew with SHIFT_GOLDEN=write and are to be read then."""

from __future__ import annotations

import json
import os

import pytest

from .conftest import CASES, FOLDER, Shift, case

READING = [(name, verb) for name in CASES for verb in ("status", "why", "top", "policy")]


def golden(name: str, found: str) -> None:
    file = FOLDER / "golden" / name
    if os.environ.get("SHIFT_GOLDEN") == "write":
        file.write_text(found)
    assert found == file.read_text()


@pytest.mark.parametrize(("name", "verb"), READING)
def test_pages(shift: Shift, name: str, verb: str) -> None:
    shift.resource(case(name))
    done = shift(verb, "llama")
    assert (done.code, done.err) == (0, "")
    golden(f"{name}-{verb}.txt", done.out)


@pytest.mark.parametrize(("name", "verb"), [(name, verb) for name, verb in READING if verb != "policy"])
def test_json(shift: Shift, name: str, verb: str) -> None:
    shift.resource(case(name))
    done = shift(verb, "llama", "-o", "json")
    assert (done.code, done.err) == (0, "")
    golden(f"{name}-{verb}.json", done.out)


def listed() -> list[dict[str, object]]:
    made = [case(name) for name in CASES]
    for name, resource in zip(CASES, made, strict=True):
        resource["metadata"]["name"] = name
    metadata = {"name": "new", "namespace": "other", "generation": 1}
    made.append({"metadata": metadata, "spec": {"parallelism": {"gpus": 1}}})
    return made


def test_a_line_for_each(shift: Shift) -> None:
    shift.resources(*listed())
    done = shift("status", "-A")
    golden("list.txt", done.out)
    assert shift.calls[0][:5] == ["get", "shiftdeployments.shiftparallel.dev", "-o", "json", "--all-namespaces"]
    assert "NAMESPACE" not in shift("status").out


def test_json_of_a_list_is_that_of_each(shift: Shift) -> None:
    shift.resource(case("healthy"))
    shift.resources(case("healthy"))
    one = json.loads(shift("status", "llama", "-o", "json").out)
    assert json.loads(shift("status", "-o", "json").out) == {"items": [one]}


def test_nothing_there(shift: Shift) -> None:
    shift.resources()
    for verb in ("status", "top"):
        done = shift(verb, "-n", "team")
        assert (done.code, done.out) == (0, "")
        assert done.err == "No ShiftDeployment found in namespace team.\n"


def test_one_condition_is_explained_also_when_it_is_good(shift: Shift) -> None:
    shift.resource(case("healthy"))
    done = shift("why", "llama", "--condition", "shiftverified")
    assert "ShiftVerified is True: GearsAgree" in done.out
    assert "all gears computed the same in the self-check of every ready pod" in done.out
    assert "Autoscaler" not in done.out
    assert "Ready is" not in done.out


def test_a_reason_of_a_later_operator(shift: Shift) -> None:
    resource = case("healthy")
    resource["status"]["conditions"][0] |= {"status": "False", "reason": "MoonPhase", "message": "full"}
    shift.resource(resource)
    assert "a later operator wrote it" in shift("why", "llama").out
    [found] = json.loads(shift("why", "llama", "-o", "json").out)["conditions"]
    assert (found["reason"], found["meaning"], found["cure"]) == ("MoonPhase", None, None)


def test_a_status_that_is_late_says_so(shift: Shift) -> None:
    resource = case("healthy")
    resource["metadata"]["generation"] = 9
    shift.resource(resource)
    for verb in ("status", "why"):
        assert "This status is of generation 5; the spec is 9 already." in shift(verb, "llama").out


def test_what_a_pod_wrote_does_not_steer_the_terminal(shift: Shift) -> None:
    resource = case("degraded")
    resource["status"]["lastFailure"]["message"] = "a\x1b[2Jb\x9bc\u202ed\n[red]e[/red] :smile:\ud800"
    resource["status"]["conditions"][0]["message"] = "\x1b]0;title\x07"
    shift.resource(resource)
    for arguments in (("status", "llama"), ("why", "llama"), ("status", "llama", "-o", "json")):
        out = shift(*arguments).out
        assert not any(steer in out for steer in "\x1b\x9b\x07\u202e")
    assert "a\ufffd[2Jb\ufffdc\ufffdd [red]e[/red] :smile:\ufffd" in shift("status", "llama").out


def test_the_budget_to_be_raised_is_that_of_the_pods_as_they_are(shift: Shift) -> None:
    """A spec of one GPU was rolled back: it was told to raise the budget from 24 to 4."""
    resource = case("scaling")
    resource["spec"]["parallelism"]["gpus"] = 1
    decided = {
        "time": "2030-01-01T11:00:00Z",
        "from": 4,
        "to": 3,
        "reason": "GpuBudget",
        "message": "m",
        "applied": True,
    }
    resource["status"]["decisions"] = [decided]
    shift.resource(resource)
    told = json.loads(shift("why", "llama", "-o", "json").out)
    assert told["decisions"][0]["opposite"].startswith("raise autoscaling.maxGpus (now 24) to 32; ")
    assert "autoscaling.maxGpus (now 24) must be raised to 32 first" in told["scaling"]["toAdd"]
