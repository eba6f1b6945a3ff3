"""The whole path with real pods: what `make demo` shows, then what it does not: speed of a patch, failures, the end."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from helpers import authority_steps  # noqa: E402
from shiftoperator.certificates import Certificates  # noqa: E402
from shiftprotos import contract  # noqa: E402
from shiftprotos.v1 import control_pb2  # noqa: E402

from examples.demo import pods, traffic  # noqa: E402
from examples.demo.settings import MANIFEST, NAME, NAMESPACE  # noqa: E402
from localcluster import install, settings, tools  # noqa: E402
from localcluster.settings import Settings  # noqa: E402

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PATCHES = 20
BAD_START_SECONDS = 90.0  # image, claim and scheduling included; the reason itself must follow the exit within 30 s


@pytest.fixture(scope="module")
def cluster() -> Settings:
    local = settings.from_environment()
    if not local.kubeconfig.exists():
        missing = f"{local.kubeconfig} does not exist; `python3 localcluster/cluster.py up` makes a cluster"
        if "e2e" in os.environ.get("SHIFT_REQUIRE", ""):
            pytest.fail(missing)
        pytest.skip(missing)
    return local


@pytest.fixture(scope="module")
def demo(cluster: Settings) -> subprocess.CompletedProcess[bytes]:
    """Runs once, with its output in the test's; leaves the ShiftDeployment behind for the tests that follow."""
    return subprocess.run([sys.executable, "-m", "examples.demo"], cwd=ROOT, timeout=880, check=False)


def patch(cluster: Settings, spec: dict[str, Any]) -> None:
    text = json.dumps({"spec": spec})
    tools.kubectl("patch", "shd", NAME, "-n", NAMESPACE, "--type", "merge", "-p", text, settings=cluster)


def wait(what: str, condition: Callable[[], bool], timeout_seconds: float) -> float:
    """Polls until true; returns the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_seconds, f"{what} took longer than {timeout_seconds} s"
        time.sleep(0.25)
    return time.monotonic() - started


def ready_condition(cluster: Settings, name: str) -> dict[str, str]:
    text = tools.kubectl("get", "shd", name, "-n", NAMESPACE, "-o", "json", settings=cluster)
    conditions = json.loads(text).get("status", {}).get("conditions", [])
    found: dict[str, str] = next((c for c in conditions if c["type"] == "Ready"), {})
    return found


@contextmanager
def control(cluster: Settings) -> Iterator[Callable[[], control_pb2.GetStateResponse]]:
    """Asks the only pod for its state, over one connection."""
    (pod,) = pods.pod_names(cluster)
    with pods.control(pod, cluster) as ask:
        yield ask


def test_demo_ends_with_exit_code_0(demo: subprocess.CompletedProcess[bytes]) -> None:
    assert demo.returncode == 0, "the demo's last lines say what it missed"


def test_policy_patch_reaches_every_rank_within_a_second(cluster: Settings, demo: object) -> None:
    restarts = pods.restarts(cluster)
    seconds: list[float] = []
    with control(cluster) as state:
        for i in range(PATCHES):
            before = state().generation_applied
            started = time.monotonic()
            patch(cluster, {"shift": {"policy": ("Throughput", "Auto")[i % 2]}})
            while state().generation_applied <= before:
                assert time.monotonic() - started < 10, f"patch {i} was not applied within 10 s"
                time.sleep(0.01)
            seconds.append(time.monotonic() - started)
    p95 = statistics.quantiles(seconds, n=20, method="inclusive")[18]
    print(f"policy patch to applied by every rank, idle: p50 {statistics.median(seconds):.3f} s, p95 {p95:.3f} s, "
          f"max {max(seconds):.3f} s over {PATCHES}")  # fmt: skip
    assert p95 <= 1.0
    assert pods.restarts(cluster) == restarts


def test_policy_patch_under_load_is_applied_at_a_step_boundary(cluster: Settings, demo: object) -> None:
    patch(cluster, {"autoscaling": {"mode": "Disabled"}})
    restarts = pods.restarts(cluster)
    with traffic.burst(cluster, prompts=6, prompt_tokens=400, decodes=2), control(cluster) as state:
        wait("the burst", lambda: state().load.running_requests >= 4, 30)
        for policy, gear in (("Throughput", "sp2"), ("Latency", "tp2"), ("Auto", "")):
            before = state()
            started = time.monotonic()
            patch(cluster, {"shift": {"policy": policy}})
            wait(policy, lambda b=before: state().generation_applied > b.generation_applied, 15)  # type: ignore[misc]
            print(f"under load, {policy}: applied {time.monotonic() - started:.2f} s after the patch")
            applied = state()
            assert applied.generation_applied == applied.generation_accepted
            if gear:
                time.sleep(2.0)
                later = state()
                steps = {g.name: g.steps - b.steps for g, b in zip(later.gears, applied.gears, strict=True)}
                assert steps[gear] > 0, f"no step in {gear} under {policy}: {steps}"
                assert sum(steps.values()) == steps[gear], f"steps in other gears under {policy}: {steps}"
    assert pods.restarts(cluster) == restarts


def test_a_new_authority_comes_into_use_under_load_without_a_restart(cluster: Settings, demo: object) -> None:
    patch(cluster, {"autoscaling": {"mode": "Disabled"}, "shift": {"policy": "Auto"}, "replicas": 1})
    wait("one pod", lambda: len(pods.pod_names(cluster)) == 1 and serving(cluster) == 1, 120)
    (pod,) = pods.pod_names(cluster)
    restarts, first = pods.restarts(cluster), authority_steps.held(cluster)
    with (
        traffic.burst(cluster, prompts=1, prompt_tokens=64, decodes=2) as burst,
        pods.forwarded(pod, contract.CONTROL_PORT, cluster) as port,
        control(cluster) as by_the_first,
    ):
        generation = by_the_first().generation_applied
        following = authority_steps.announce_next(cluster, first, used_in=timedelta(seconds=40))
        started = time.monotonic()
        wait("the pod to show the next authority", lambda: authority_steps.shown_on(port) == following, 120)
        print(f"a new authority signs what the pod shows {time.monotonic() - started:.0f} s after it was announced")
        assert by_the_first().ready, "a connection from before goes on"
        patch(cluster, {"shift": {"policy": "Throughput"}})
        wait("a policy over the new authority", lambda: by_the_first().generation_applied > generation, 10)
        authority_steps.forget_before(cluster, authority_steps.held(cluster))
        wait("the first authority to be refused", lambda: refused(cluster, pod, first), 60)
        patch(cluster, {"shift": {"policy": "Auto"}})
        with control(cluster) as by_the_next:
            wait("a policy without the first", lambda: by_the_next().generation_applied > generation + 1, 10)
    assert pods.restarts(cluster) == restarts
    assert pods.pod_names(cluster) == [pod]
    for kind in ("decodes", "prompts"):
        assert set(burst.figures[kind]["outcomes"]) == {"OK"}, burst.figures


def refused(cluster: Settings, pod: str, client: Certificates) -> bool:
    """Whether the pod refuses this client, which itself trusts whoever the pod trusts."""
    trusted = authority_steps.held(cluster).trusted
    with pods.control(pod, cluster, {**client.as_data(), contract.CONTROL_TLS_AUTHORITIES: trusted}) as ask:
        try:
            ask()
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAVAILABLE)
    return False


def test_killed_rank_ends_streams_and_the_pod_comes_back(cluster: Settings, demo: object) -> None:
    (pod,) = pods.pod_names(cluster)
    restarts = pods.restarts(cluster)
    kill = (
        "import os,pathlib,signal\n"
        "for p in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    words = (p / 'cmdline').read_bytes().split(b'\\0')\n"
        "    if b'shiftruntime.worker' in words and words[words.index(b'--rank') + 1] == b'1':\n"
        "        os.kill(int(p.name), signal.SIGKILL)\n"
    )
    with traffic.burst(cluster, prompts=2, prompt_tokens=200, decodes=4) as burst:
        with control(cluster) as state:
            wait("the burst", lambda: state().load.running_requests >= 2, 30)
        started = time.monotonic()
        tools.kubectl("exec", "-n", NAMESPACE, pod, "--", "python3", "-c", kill, settings=cluster)
        wait("the restart", lambda: pods.restarts(cluster) > restarts, 30)
        print(f"rank killed: container restarted {time.monotonic() - started:.1f} s later")
        wait("the pod", lambda: ready_condition(cluster, NAME).get("status") == "True", 180)
        print(f"rank killed: Ready again {time.monotonic() - started:.1f} s later")
        with control(cluster) as state:  # the burst ends when its requests in flight have ended
            wait("requests again", lambda: state().load.running_requests >= 1, 60)
    outcomes = burst.figures["decodes"]["outcomes"]
    assert outcomes.get("UNAVAILABLE", 0) >= 1, f"streams must end UNAVAILABLE: {outcomes}"
    assert outcomes.get("OK", 0) >= 1, f"the pod must serve again: {outcomes}"
    assert set(outcomes) <= {"OK", "UNAVAILABLE"}, f"no stream may hang or end otherwise: {outcomes}"


@pytest.mark.parametrize(
    ("name", "change", "reason", "words"),
    [
        ("no-model", {"model": {"uri": "pvc://gemma-270m/nowhere.gguf"}}, "ModelNotFound", "nowhere.gguf"),
        ("three-ranks", {"parallelism": {"gpus": 3}}, "InvalidLayout", "do not divide over 3 ranks"),
        ("no-memory", {"runtime": {"resources": {"limits": {"memory": "600Mi"}}}}, "OutOfMemory", "600 MiB"),
    ],
)
def test_what_only_the_runtime_knows_is_said_in_ready(
    cluster: Settings, demo: object, name: str, change: dict[str, Any], reason: str, words: str
) -> None:
    manifest = yaml.safe_load(MANIFEST.read_text())
    manifest["metadata"]["name"] = name
    for section, values in change.items():
        manifest["spec"].setdefault(section, {}).update(values)
    tools.kubectl("apply", "-n", NAMESPACE, "-f", "-", settings=cluster, stdin=json.dumps(manifest))
    try:
        wait(reason, lambda: ready_condition(cluster, name).get("reason") == reason, BAD_START_SECONDS)
        condition = ready_condition(cluster, name)
        assert condition["status"] == "False"
        assert words in condition["message"], condition
        print(f"{name}: {condition['reason']}: {condition['message']}")
    finally:
        tools.kubectl("delete", "shd", name, "-n", NAMESPACE, "--wait=false", settings=cluster)


def test_a_rolling_update_and_a_scale_in_under_load_lose_no_request(cluster: Settings, demo: object) -> None:
    patch(cluster, {"autoscaling": {"mode": "Disabled"}, "shift": {"policy": "Auto"}, "replicas": 2})
    wait("two pods", lambda: serving(cluster) == 2, 180)
    old, restarts = set(pods.pod_names(cluster)), pods.restarts(cluster)
    with traffic.burst(cluster, prompts=1, prompt_tokens=64, decodes=2) as burst:
        started = time.monotonic()
        patch(cluster, {"engine": {"maxNumSeqs": 15}})
        wait("a new pod", lambda: served_since(cluster, old, ready_only=True) >= 1, 240)
        ready = time.monotonic()
        wait("a request on the new pod", lambda: served_since(cluster, old) >= 1, 30)
        print(
            f"rolling update: the open client's first request on a new pod {time.monotonic() - ready:.1f} s after Ready"
        )
        wait("the rollout", lambda: not old & set(pods.pod_names(cluster)) and serving(cluster) == 2, 240)
        print(f"rolling update of two pods under load: {time.monotonic() - started:.0f} s")
        patch(cluster, {"replicas": 1})
        wait("the scale-in", lambda: len(pods.pod_names(cluster)) == 1, 120)
    for kind in ("decodes", "prompts"):
        figures = burst.figures[kind]
        print(f"{kind}: accepted {figures['outcomes']}, refused before that {figures['refused']}")
        assert set(figures["outcomes"]) == {"OK"}, f"an accepted request was lost: {figures['outcomes']}"
        assert set(figures["refused"]) <= {"UNAVAILABLE"}
    assert pods.restarts(cluster) <= restarts, "pods leave by SIGTERM and come back as others"
    wait("the last pod", lambda: serving(cluster) == 1, 120)


def serving(cluster: Settings) -> int:
    text = tools.kubectl("get", "shd", NAME, "-n", NAMESPACE, "-o", "json", settings=cluster)
    return int(json.loads(text).get("status", {}).get("readyReplicas", 0))


def served_since(cluster: Settings, old: set[str], ready_only: bool = False) -> int:
    """New pods that serve: that are ready, or that have run steps for requests."""
    text = tools.kubectl("get", "shd", NAME, "-n", NAMESPACE, "-o", "json", settings=cluster)
    new = [p for p in json.loads(text).get("status", {}).get("pods", ()) if p["name"] not in old and p["ready"]]
    return len(new) if ready_only else sum(running(cluster, pod["name"]) for pod in new)


def running(cluster: Settings, pod: str) -> bool:
    load = pods.state(pod, cluster).load
    return load.running_requests > 0 or load.output_tokens_per_second > 0


def test_uninstall_with_a_live_object_leaves_only_what_notes_says(cluster: Settings, demo: object) -> None:
    (pod,) = pods.pod_names(cluster)
    tools.helm("uninstall", install.RELEASE, "-n", install.OPERATOR_NAMESPACE, "--wait", settings=cluster)
    assert pods.pod_names(cluster) == [pod], "the pod goes on serving without an operator"
    tools.kubectl("delete", "shd", NAME, "-n", NAMESPACE, "--timeout=30s", settings=cluster)
    selector = f"{contract.LABEL_DEPLOYMENT}={NAME}"
    for kind in ("deployments", "services", "secrets", "serviceaccounts", "poddisruptionbudgets", "networkpolicies",
                 "controllerrevisions", "pods"):  # fmt: skip
        install.wait_gone(kind, NAMESPACE, selector, cluster, 90.0)
    for namespace in (NAMESPACE, install.OPERATOR_NAMESPACE):
        tools.kubectl("delete", "namespace", namespace, "--timeout=90s", settings=cluster)
    left = tools.kubectl(
        *("get", "clusterroles,clusterrolebindings,crds,validatingwebhookconfigurations", "-o", "name"),
        settings=cluster,
    )
    # "shift:…" are the local cluster's own.
    ours = [line for line in left.splitlines() if "shift" in line and "/shift:" not in line]
    assert ours == ["customresourcedefinition.apiextensions.k8s.io/shiftdeployments.shiftparallel.dev"]
