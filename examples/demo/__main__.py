"""`make demo`. Exit code 0 only if everything was seen."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from shiftprotos.v1 import control_pb2

from examples.demo import pods, show, traffic, watch
from examples.demo.settings import (
    MANIFEST,
    NAME,
    NAMESPACE,
    POLICY_SECONDS,
    READY_SECONDS,
    SCALE_IN_SECONDS,
    SECOND_POD_SECONDS,
)
from examples.demo.show import say
from localcluster import bringup, content, install, machine
from localcluster.errors import ClusterError
from localcluster.lock import exclusive
from localcluster.settings import Settings, from_environment
from localcluster.tools import kubectl

PLAN = f"""[bold]Shift on this machine.[/] What this changes here:
   installs missing Debian packages (containerd, runc, buildah and others; never starts their services),
   starts Kubernetes with processes, a bridge and iptables rules of its own: `make down` removes them,
   keeps caches in ~/.cache/shift and {content.CONTENT} (about 6 GB, PyTorch mostly) and .venv here.
   It runs as root. The model is Gemma 3 270M under Google's Gemma terms (https://ai.google.dev/gemma/terms)."""


def main() -> int:
    started = time.monotonic()
    show.console.print(PLAN, soft_wrap=True)
    try:
        seen = Demo(from_environment()).run()
    except ClusterError as error:
        show.console.print(f"\n[bold red]error:[/] {error}")
        return 1
    show.checks(seen)
    show.console.print(f"\n{'All was seen' if all(seen.values()) else 'Not all was seen'} "
                       f"after {time.monotonic() - started:.0f} s.")  # fmt: skip
    show.console.print(where_to_look(), markup=False, soft_wrap=True)
    return 0 if all(seen.values()) else 1


class Demo:
    """The phases, in order; ``seen`` collects what the exit code depends on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.seen: dict[str, bool] = {}

    def run(self) -> dict[str, bool]:
        self.cluster()
        self.operator()
        self.deployment()
        quiet = self.one_request()
        self.live_policy()
        burst, path, states = self.burst()
        self.report(quiet, burst, path, states)
        return self.seen

    def cluster(self) -> None:
        show.phase(1, "A Kubernetes cluster (the first time its programs are built: about 6 minutes on 2 cores)")
        machine.require_root()
        with exclusive(self.settings):
            bringup.up(self.settings)

    def operator(self) -> None:
        show.phase(2, "Images from the Dockerfiles, the operator from its Helm chart")
        install.build_images(self.settings)
        install.install_operator(self.settings, say)

    def deployment(self) -> None:
        show.phase(3, f"kubectl apply -f {MANIFEST.relative_to(MANIFEST.parents[1])}")
        install.prepare_namespace(NAMESPACE, self.settings)
        # A former demo may have left the object at two replicas: begin anew.
        kubectl("delete", "shd", NAME, "-n", NAMESPACE, "--ignore-not-found", "--wait", settings=self.settings)
        install.wait_gone("pods", NAMESPACE, f"shiftparallel.dev/deployment={NAME}", self.settings, 90.0)
        kubectl("apply", "-n", NAMESPACE, "-f", str(MANIFEST), settings=self.settings)
        ready = watch.wait_for(self.settings, "the first pod", _is_ready, READY_SECONDS, say)
        self.seen["a pod of the ShiftDeployment is Ready"] = ready.ready >= 1
        verified = ready.conditions.get("ShiftVerified", ("", "", ""))
        self.seen["ShiftVerified: all gears compute the same"] = verified[0] == "True"
        say(ready.describe("ShiftVerified"))

    def one_request(self) -> dict[str, Any]:
        show.phase(4, "One request over gRPC, from a pod, through the headless Service")
        traffic.start_client(self.settings)
        figures = traffic.generate("The capital of France is Paris. The capital of Italy is", 24, self.settings)
        self.seen["a streamed answer of 24 tokens"] = figures["tokens"] == 24
        return figures

    def live_policy(self) -> None:
        show.phase(5, "The shift policy, live: Throughput, then Auto again")
        before = pods.restarts(self.settings)
        in_sync = [self._patch_policy(policy) for policy in ("Throughput", "Auto")]
        self.seen["policy in sync after each patch, no pod restarted"] = (
            all(in_sync) and pods.restarts(self.settings) == before
        )

    def _patch_policy(self, policy: str) -> bool:
        pod = pods.pod_names(self.settings)[0]
        generation = pods.state(pod, self.settings).generation_accepted
        patch = json.dumps({"spec": {"shift": {"policy": policy}}})
        started = time.monotonic()
        kubectl("patch", "shd", NAME, "-n", NAMESPACE, "--type", "merge", "-p", patch, settings=self.settings)
        while time.monotonic() - started < POLICY_SECONDS:
            state = pods.state(pod, self.settings)
            if state.generation_applied > generation:
                seconds = time.monotonic() - started
                say(
                    f"{policy}: generation {state.generation_applied} applied by every rank, seen {seconds:.1f} s later"
                )
                return True
        say(f"{policy}: not applied within {POLICY_SECONDS:.0f} s")
        return False

    def burst(self) -> tuple[dict[str, Any], watch.ReplicaPath, dict[str, control_pb2.GetStateResponse]]:
        show.phase(6, "A burst of long prompts beside running decodes; the operator scales out, then in")
        with watch.ReplicaPath(self.settings, say) as path:
            with traffic.burst(self.settings, prompts=24, prompt_tokens=400, decodes=4) as burst:
                watch.wait_for(self.settings, "the second pod", lambda r: r.ready >= 2, READY_SECONDS, lambda _: None)
                say("two pods are ready; the burst ends when both have worked in both gears")
                states = self._states_when_all_worked()
            watch.wait_for(
                self.settings, "scaling in", lambda r: r.wanted == 1 == r.ready, SCALE_IN_SECONDS, lambda _: None
            )
        self.seen["replicas went 1 → 2 → 1"] = path.wanted[-3:] == [1, 2, 1] and 2 in path.ready
        steps = [{gear.name: gear.steps for gear in state.gears} for state in states.values()]
        self.seen["pods ran steps in both gears and shifted"] = any(
            pod.get("tp2", 0) and pod.get("sp2", 0) for pod in steps
        ) and any(state.shifts for state in states.values())
        self.seen["both pods served"] = len(steps) == 2 and all(sum(pod.values()) for pod in steps)
        outcomes, refused = burst.figures["prompts"]["outcomes"], burst.figures["prompts"]["refused"]
        answered = set(outcomes) <= {"OK"} and set(refused) <= {"RESOURCE_EXHAUSTED"}
        self.seen["every prompt of the burst was answered"] = answered
        return burst.figures, path, states

    def _states_when_all_worked(self) -> dict[str, control_pb2.GetStateResponse]:
        """Clients find a new pod with their next channel; after the deadline the checks say what is missing."""
        deadline = time.monotonic() + SECOND_POD_SECONDS
        while True:
            states = {pod: pods.state(pod, self.settings) for pod in pods.pod_names(self.settings)}
            worked = all(gear.steps for state in states.values() for gear in state.gears)
            if (len(states) == 2 and worked) or time.monotonic() > deadline:
                return states
            time.sleep(2.0)

    def report(
        self,
        quiet: dict[str, Any],
        burst: dict[str, Any],
        path: watch.ReplicaPath,
        states: dict[str, control_pb2.GetStateResponse],
    ) -> None:
        show.phase(7, "What happened")
        show.steps_per_gear(states)
        show.costs(states)
        say("Ranks here share one memory and two cores: exchanging tensors is nearly free, so the gears cost about the")
        say("same, and the manifest sets thresholdTokens to make shifting visible. On GPUs over NVLink they differ.")
        show.latencies([("one, alone", quiet), ("decodes in the burst", burst["decodes"]),
                        ("long prompts in the burst", burst["prompts"])])  # fmt: skip
        say(f"replicas wanted: {show.path(path.wanted)}; ready: {show.path(path.ready)}")
        show.console.print(kubectl("get", "shd", "-n", NAMESPACE, settings=self.settings), markup=False, soft_wrap=True)


def _is_ready(reading: watch.Reading) -> bool:
    return reading.conditions.get("Ready", ("",))[0] == "True"


def where_to_look() -> str:
    return f"""Where to look next (the cluster stays up):
   export KUBECONFIG=$(.venv/bin/python localcluster/cluster.py kubeconfig) PATH=$PWD/.venv/bin:$PATH
   kubectl -n {NAMESPACE} describe shd {NAME}                   conditions, decisions, events
   kubectl -n {NAMESPACE} logs deploy/{NAME} -c runtime         start-up phases, gears, costs
   kubectl -n {NAMESPACE} patch shd {NAME} --type merge -p '{{"spec":{{"shift":{{"policy":"Latency"}}}}}}'
   kubectl -n {install.OPERATOR_NAMESPACE} logs -l app.kubernetes.io/instance={install.RELEASE}
   make down                                              ends the cluster and removes what it made"""


if __name__ == "__main__":
    sys.exit(main())
