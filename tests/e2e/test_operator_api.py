"""The operator as a process against a real API server; no runtime pods, so no model and no image is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "gemma-270m.yaml"
NAMESPACE = "shift-test-operator-api"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

Object = dict[str, Any]


class Kubectl:
    def __init__(self, kubeconfig: Path) -> None:
        self._base = [str(Path(sys.executable).parent / "kubectl"), f"--kubeconfig={kubeconfig}"]

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [*self._base, "--request-timeout=30s", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=90, check=False)

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, obj: Object) -> str:
        return self("-n", NAMESPACE, "apply", "-f", "-", stdin=json.dumps(obj))

    def refused(self, obj: Object) -> str:
        done = self.run("-n", NAMESPACE, "apply", "-f", "-", stdin=json.dumps(obj))
        assert done.returncode != 0, f"{obj['spec']} was accepted"
        return done.stderr

    def get(self, name: str) -> Object:
        found: Object = json.loads(self("-n", NAMESPACE, "get", "shd", name, "-o", "json"))
        return found


@pytest.fixture(scope="module")
def kubeconfig() -> Path:
    sys.path.append(str(ROOT))
    from localcluster import settings

    path = settings.from_environment().kubeconfig  # never another cluster
    if not path.exists():
        missing = f"{path} does not exist; `python3 localcluster/cluster.py up` makes a cluster"
        if "e2e" in os.environ.get("SHIFT_REQUIRE", ""):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@pytest.fixture(scope="module")
def kubectl(kubeconfig: Path) -> Iterator[Kubectl]:
    kubectl = Kubectl(kubeconfig)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "charts/shift/crds/shiftdeployments.yaml"))
    kubectl("wait", "--for=condition=Established", "crd/shiftdeployments.shiftparallel.dev", "--timeout=30s")
    kubectl.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s")
    kubectl("create", "namespace", NAMESPACE)
    yield kubectl
    kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")


@pytest.fixture(scope="module")
def operator(kubectl: Kubectl, kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    log = tmp_path_factory.mktemp("operator") / "log"
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "SHIFT_WATCH_NAMESPACES": NAMESPACE,
        "SHIFT_NAMESPACE": NAMESPACE,
        "SHIFT_OPS_PORT": "0",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "shiftoperator"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        yield log
        process.terminate()
        assert process.wait(timeout=30) == 0, log.read_text()


def resource(name: str, **changed: Any) -> Object:
    """The example, asking for no pods."""
    example: Object = yaml.safe_load(EXAMPLE.read_text())
    example["metadata"]["name"] = name
    example["spec"] = {**example["spec"], "replicas": 0, **changed}
    return example


def eventually(check: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.2)


def ready(kubectl: Kubectl, name: str) -> tuple[str, str]:
    conditions = kubectl.get(name).get("status", {}).get("conditions", [])
    return next(((c["status"], c["reason"]) for c in conditions if c["type"] == "Ready"), ("", ""))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"parallelism": {"gpus": 4, "sequence": 3, "tensor": 2}}, "sequence 3 × tensor 2 = 6, but gpus is 4"),
        ({"parallelism": {"gpus": 4, "tensor": 3}}, "tensor 3 does not divide gpus 4"),
        ({"parallelism": {}}, "gpus: Required value"),
        ({"parallelism": {"gpus": 2, "bogus": 1}}, 'unknown field "spec.parallelism.bogus"'),
        ({"autoscaling": {"mode": "Apply", "min": 3, "max": 2}}, "autoscaling.min 3 is above max 2"),
        ({"autoscaling": {"mode": "Apply"}}, "needs autoscaling.max"),
        ({"shift": {"thresholdTokens": 0}}, "greater than or equal to 1"),
        ({"shift": {"thresholdTokens": 1048577}}, "less than or equal to 1048576"),
        ({"shift": {"policy": "Fast"}}, 'supported values: "Auto", "Latency", "Throughput"'),
        ({"model": {"uri": "ftp://google/gemma"}}, "model.uri 'ftp://google/gemma' cannot be read"),
        ({"runtime": {"env": [{"name": "SHIFT_POD_NAME", "value": "x"}]}}, "SHIFT_POD_NAME is set by the operator"),
        (
            {"podTemplate": {"spec": {"containers": [{"name": "runtime", "args": ["x"]}]}}},
            "the operator writes command and args",
        ),
    ],
)
def test_what_can_never_work_is_refused_with_the_reason(kubectl: Kubectl, changed: Object, words: str) -> None:
    assert words in kubectl.refused(resource("bad", **changed))


def test_life_of_a_resource(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(resource("life"))
    eventually(lambda: ready(kubectl, "life") == ("True", "ScaledToZero"))
    created = kubectl.get("life")
    assert "finalizers" not in created["metadata"]
    assert created["status"]["policyGeneration"] >= 1

    kubectl("-n", NAMESPACE, "patch", "shd", "life", "--type=merge", "-p", '{"spec":{"shift":{"policy":"Latency"}}}')
    eventually(lambda: kubectl.get("life")["status"]["policyGeneration"] >= 2)
    patched = kubectl.get("life")["status"]
    assert patched["policy"]["mode"] == "Latency"
    assert patched["templateHash"] == created["status"]["templateHash"]

    eventually(lambda: kubectl.get("life")["status"]["observedGeneration"] == 2)
    version = kubectl.get("life")["metadata"]["resourceVersion"]
    deployment = kubectl("-n", NAMESPACE, "get", "deploy", "life", "-o", "jsonpath={.metadata.generation}")
    time.sleep(8.0)
    assert kubectl.get("life")["metadata"]["resourceVersion"] == version, "nothing is written at rest"
    assert kubectl("-n", NAMESPACE, "get", "deploy", "life", "-o", "jsonpath={.metadata.generation}") == deployment

    kubectl("-n", NAMESPACE, "delete", "shd", "life", "--timeout=20s")
    kinds = "deploy,svc,secret,pdb,netpol,controllerrevision"
    eventually(lambda: "life" not in kubectl("-n", NAMESPACE, "get", kinds, "-o", "name"), 40.0)
    assert "ERROR" not in operator.read_text()


def test_what_somebody_deletes_comes_back(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(resource("repair"))
    eventually(lambda: ready(kubectl, "repair") == ("True", "ScaledToZero"))
    kubectl("-n", NAMESPACE, "delete", "svc", "repair-headless")
    eventually(lambda: kubectl.run("-n", NAMESPACE, "get", "svc", "repair-headless").returncode == 0)
    kubectl("-n", NAMESPACE, "delete", "shd", "repair", "--timeout=20s")


def test_a_foreign_object_is_left_alone(kubectl: Kubectl, operator: Path) -> None:
    kubectl("-n", NAMESPACE, "create", "service", "clusterip", "taken", "--tcp=80")
    kubectl.apply(resource("taken"))
    eventually(lambda: ready(kubectl, "taken") == ("False", "NameConflict"))
    ports = kubectl("-n", NAMESPACE, "get", "svc", "taken", "-o", "jsonpath={.spec.ports[*].port}")
    assert ports == "80"
    kubectl("-n", NAMESPACE, "delete", "shd", "taken", "--timeout=20s")
