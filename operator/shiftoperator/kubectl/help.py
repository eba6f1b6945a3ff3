"""What `--help` teaches. The JSON that is described here is stable: fields may be added, none changes its meaning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Help:
    summary: str
    description: str
    epilog: str


TOP = Help(
    "",
    """\
What a ShiftDeployment does, why it does it, and its shift policy. Talks to the cluster through your kubectl, with your
contexts and your rights.""",
    """\
examples:
  kubectl shift status                        every ShiftDeployment of the namespace, one line each
  kubectl shift status llama                  everything about one
  kubectl shift why llama                     what is not as it should be, and what to do
  kubectl shift policy llama latency          pin the gear of lowest latency, live
  kubectl shift top --watch                   how busy the pods are
  kubectl shift drain llama-7c9d-x2x4q        replace a pod without cutting off its requests

`kubectl shift VERB --help` has more. Options follow the verb: kubectl shift status -n team.

exit codes: 0 done; 1 kubectl failed (its own message is shown) or the request was refused; 2 usage, or a wait ended at
its deadline.""",
)

HELP = {
    "status": Help(
        "state of one ShiftDeployment, or one line of each",
        "Shows conditions, pods with gears and policy, capacity per gear, crossover, targets, start and last failure.",
        """\
examples:
  kubectl shift status
  kubectl shift status -A
  kubectl shift status llama -n team
  kubectl shift status llama -o json | jq .conditions

-o json, of one; without NAME a list of these in `items`:
  namespace, name, model, suspended, gpusPerPod, generation, observedGeneration (below generation: the status is late)
  replicas     {asked, live, ready}
  policy       {asked {mode, thresholdTokens}, set {the same}, schedule: as in the resource, generation, inSync}
  gear, load   share of steps per gear; band of the busiest pod
  conditions   [{type, status, reason, message, since, observedGeneration, health: ok|resting|waiting|attention}]
  pods, capacity, crossover, slowestStart, lastFailure, slo     as in the resource; null or empty where absent""",
    ),
    "why": Help(
        "why it is as it is: reasons, what to do, decisions",
        """\
Explains each condition that is not as it should be: its reason, what that means and what to do. Then the last decisions
of the autoscaler with their figures, and what would have to change for the opposite. All from spec and status.""",
        """\
examples:
  kubectl shift why llama
  kubectl shift why llama --condition ScalingActive
  kubectl shift why llama -o json | jq -r '.conditions[] | select(.health == "attention") | .cure'

-o json:
  namespace, name, generation, observedGeneration
  conditions   those of `status`, each with meaning and cure (null for a reason that this version does not know)
  policy       as of `status`
  scaling      {mode, reason, message, toAdd, toRemove}: when a pod is added or taken away (null: nobody decides)
  decisions    as in the resource, each with opposite; the newest first""",
    ),
    "policy": Help(
        "show or change the shift policy, live",
        """\
Auto chooses the gear at every step, latency pins the tp gear, throughput the base gear. A threshold sets the tokens up
to which a step runs the tp gear. No pod restarts. Without a policy and a threshold it only shows what holds.""",
        """\
examples:
  kubectl shift policy llama
  kubectl shift policy llama throughput              before a batch job
  kubectl shift policy llama auto --threshold 512
  kubectl shift policy llama --no-threshold --wait 60

Waits until every ready pod reports the new policy (PolicyInSync); exit code 2 when that lasts longer than --wait. The
policy is stored then all the same, and the operator goes on.

-o json, with progress on stderr; after a change as it was at the last look:
  namespace, name, generation, observedGeneration
  policy       as of `status`""",
    ),
    "top": Help(
        "pods by load, gears and policy",
        """\
Pods with their load band (idle, low, medium, high, full), for how long it holds, gears and policy generation. The bands
are from the status: coarse on purpose, and falling 30 s late. Continuous figures are metrics (shift_operator_…).""",
        """\
examples:
  kubectl shift top
  kubectl shift top llama --watch

-o json; with --watch an object on one line for every change:
  items        [{namespace, name, policyGeneration, pods: as in the resource}]""",
    ),
    "drain": Help(
        "replace a pod; it finishes its requests",
        """\
Says what will happen, asks, and evicts the pod: it takes no new requests, finishes what it runs within its termination
grace period, and the Deployment replaces it. Waits until as many pods are ready as before. Refused while a
PodDisruptionBudget forbids it (spec.disruption.maxUnavailable); --force deletes the pod all the same.""",
        """\
examples:
  kubectl shift drain llama-7c9d-x2x4q
  kubectl shift drain llama-7c9d-x2x4q --yes --wait 900
  kubectl shift drain llama-7c9d-x2x4q --force        although too few pods would be left

Exit code 2 when it lasts longer than --wait; the pod drains on all the same.

-o json, with what will happen and progress on stderr:
  namespace, name, pod     name: of its ShiftDeployment
  by           Eviction, or Deletion with --force
  done         whether the pod was seen to be gone, and as many to be ready as before; false with --wait 0
  readyPods    those that serve now""",
    ),
    "rotate": Help(
        "new certificates for the control channel, while it serves",
        """\
Asks for a new authority of the channel between operator and pods, as after a leak. Old and new are trusted together
until every pod has read the new one, in little more than an hour; no call fails and no pod restarts. Certificates are
renewed without this long before they expire.""",
        """\
examples:
  kubectl shift rotate llama""",
    ),
}
