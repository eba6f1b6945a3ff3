"""Which shift policy the pods should have, and under which generation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from shiftcore.bias import Staffing, biased_mode
from shiftcore.policy import Mode

from shiftoperator import rollout
from shiftoperator.snapshot import Object, RuntimeState, Snapshot
from shiftoperator.spec import AdaptiveMode, Policy, Spec
from shiftoperator.status.bands import busy_share
from shiftoperator.status.trouble import waiting_for_drain


@dataclass(frozen=True)
class PolicyPlan:
    """The policy with its generation, and whether it must be stored before it is pushed."""

    policy: Policy
    generation: int
    store: bool


def policy(status: Object, wanted: Policy, states: Iterable[RuntimeState] = ()) -> PolicyPlan:
    """A generation is raised for a new policy, and when pods know a higher one: then ours was lost."""
    stored = int(status.get("policyGeneration", 0))
    generation = stored
    if stored == 0 or (status.get("policy") or {}) != wanted.as_status():
        generation += 1
    for state in states:
        if state.generation_accepted > generation:
            generation = state.generation_accepted + 1
        elif state.generation_accepted == generation and state.policy != wanted:
            generation += 1
    return PolicyPlan(wanted, generation, store=generation != stored)


def wanted_policy(snapshot: Snapshot, spec: Spec, calm_seconds: float = 0.0) -> Policy:
    """The user's, with the threshold that targets moved; of the throughput gear while pods that serve carry the load of
    others, which are away, until it has been calm for some time."""
    asked = Mode(spec.policy.mode)
    mode = biased_mode(asked, _staffing(snapshot, spec), _is_biased(snapshot), calm_seconds)
    if mode is not asked:
        return Policy(str(mode))
    moved = adaptive_tokens(snapshot, spec)
    return spec.policy if moved is None else replace(spec.policy, threshold_tokens=moved)


def _is_biased(snapshot: Snapshot) -> bool:
    """A schedule that was over before it is told so must not go on as a bias."""
    scheduled = (snapshot.status.get("schedule") or {}).get("policy")
    set_ = (snapshot.status.get("policy") or {}).get("mode")
    return bool(set_ == Mode.THROUGHPUT and scheduled != Mode.THROUGHPUT)


def adaptive_tokens(snapshot: Snapshot, spec: Spec) -> int | None:
    """The threshold that was moved, as the status has it; None while it is the user's or the pods' own, and while a
    schedule pins a gear."""
    if spec.adaptive.mode is not AdaptiveMode.APPLY or spec.policy.mode != Mode.AUTO:
        return None
    told: Object = snapshot.status.get("adaptive") or {}
    # A threshold that the user sets anew counts at once: the loop begins from there.
    same_start = told.get("startTokens") == spec.policy.threshold_tokens
    tokens = told.get("thresholdTokens") if told.get("mode") == AdaptiveMode.APPLY and same_start else None
    return None if tokens is None else min(max(int(tokens), spec.adaptive.min_tokens), spec.adaptive.max_tokens)


def is_short(snapshot: Snapshot, spec: Spec) -> bool:
    """Whether pods that serve carry the load of others."""
    return _staffing(snapshot, spec).short


def is_calm(snapshot: Snapshot, spec: Spec) -> bool:
    """Whether pods that serve are hardly used."""
    return _staffing(snapshot, spec).calm


def _staffing(snapshot: Snapshot, spec: Spec) -> Staffing:
    """A pod without a node may lack one for days, unless another makes room: what serves is all there is until then."""
    serving = [pod for pod in snapshot.ready_pods if not pod.retiring]
    states = [snapshot.states[pod.uid] for pod in serving if pod.uid in snapshot.states]
    queued = 0 if waiting_for_drain(snapshot) else sum(pod.scheduled is False for pod in snapshot.live_pods)
    return Staffing(
        asked=spec.pods - queued,
        serving=len(serving),
        replacing=rollout.rolling(snapshot) and not spec.rollout.paused,
        busy=max((1.0 if state.load.waiting_requests else busy_share(state) for state in states), default=0.0),
    )


def behind(snapshot: Snapshot, generation: int) -> tuple[str, ...]:
    """uids of pods that serve and have not accepted this generation: they started after it was pushed."""
    return tuple(u for u, state in snapshot.states.items() if state.ready and state.generation_accepted < generation)
