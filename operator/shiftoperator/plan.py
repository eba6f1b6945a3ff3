"""What to do about what was seen: pure functions, one per question."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from shiftcore import scaling
from shiftcore.bias import Staffing, biased_mode
from shiftcore.layout import tp_gear
from shiftcore.policy import Mode
from shiftprotos import contract

from shiftoperator import certificates, manifests, names, rollout
from shiftoperator.errors import NameConflictError
from shiftoperator.snapshot import Access, ClientTls, Object, Pod, RuntimeState, Snapshot
from shiftoperator.spec import AdaptiveMode, Policy, Spec
from shiftoperator.status.bands import busy_share
from shiftoperator.status.trouble import waiting_for_drain

REVISIONS_KEPT = 5
# Over how long the share of tokens per gear is taken.
SHARE_SECONDS = 10.0

_TEMPLATE_PATH = re.compile(r"\.?spec\.template((?:\.\w+|\[[^\]]*\])+)")
_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?")
_FACTORS = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip


# --- children ---


@dataclass(frozen=True)
class Changes:
    """Objects to create, to apply, each in order, and to delete."""

    apply: tuple[Object, ...]
    delete: tuple[Object, ...]
    # Only if there is none: its caller may give up on a write that arrives later, when pods have another key already.
    create: tuple[Object, ...] = ()


def revision(snapshot: Snapshot, spec: Spec, default_image: str) -> Object:
    """The stored pod template of this spec; a newly rendered one only where there is none."""
    template_hash = manifests.template_hash(snapshot.resource["spec"])
    stored = rollout.stored(snapshot, template_hash)
    if stored is not None:
        template, number = stored["data"]["template"], stored["revision"]
    else:
        number = rollout.next_number(snapshot)
        template = manifests.pod_template(snapshot.key.name, spec, template_hash, default_image)
    return manifests.controller_revision(snapshot.resource, template_hash, template, number)


def changes(snapshot: Snapshot, desired: Iterable[Object]) -> Changes:
    """Raises NameConflictError before anything that is not ours would be overwritten."""
    wanted = tuple(desired)
    for child in wanted:
        if foreign(snapshot, *_identity(child)):
            raise NameConflictError(*_identity(child))
    create = tuple(c for c in wanted if c["kind"] == "Secret" and _identity(c) not in snapshot.children)
    to_apply = tuple(c for c in wanted if c not in create and not contains(snapshot.children.get(_identity(c)), c))
    return Changes(to_apply, _old_revisions(snapshot, wanted), create)


def in_words_of_the_spec(message: str) -> str:
    """A refusal of the Deployment that names the fields as the user wrote them."""
    return _TEMPLATE_PATH.sub(r"podTemplate\1", message)


def foreign(snapshot: Snapshot, kind: str, name: str) -> bool:
    """Whether the name is taken by an object of somebody else."""
    observed = snapshot.children.get((kind, name))
    return observed is not None and not _owned(observed, snapshot.resource["metadata"]["uid"])


def contains(observed: Any, desired: Any) -> bool:
    """Whether everything desired is observed; what the API server added does not matter."""
    if observed is None:
        # The API server leaves out what is empty.
        return not desired
    if isinstance(desired, dict):
        return isinstance(observed, dict) and all(contains(observed.get(k), v) for k, v in desired.items())
    if isinstance(desired, list):
        same_length = isinstance(observed, list) and len(observed) == len(desired)
        return same_length and all(contains(o, d) for o, d in zip(observed, desired, strict=True))
    return bool(observed == desired) or _same_quantity(observed, desired)


def _same_quantity(one: Any, other: Any) -> bool:
    """The API server writes quantities its own way: 1000m becomes 1."""
    matches = [_QUANTITY.fullmatch(str(value)) for value in (one, other) if isinstance(value, (str, int))]
    if len(matches) != 2 or matches[0] is None or matches[1] is None:
        return False
    first, second = (float(match[1]) * _FACTORS[match[2] or ""] for match in matches if match is not None)
    return first == second


def _old_revisions(snapshot: Snapshot, wanted: tuple[Object, ...]) -> tuple[Object, ...]:
    present = {child["metadata"]["name"] for child in wanted if child["kind"] == "ControllerRevision"}
    good = rollout.revisions(snapshot).good
    in_use = {pod.template_hash for pod in snapshot.pods}
    idle = [r for r in snapshot.revisions() if r["metadata"]["name"] not in present and _hash_of(r) not in in_use]
    uid = snapshot.resource["metadata"]["uid"]
    # The good one may be wanted back, however old it is.
    owned = [r for r in idle if _owned(r, uid)]
    newest_first = sorted(owned, key=lambda r: (_hash_of(r) != good, -int(r.get("revision", 0))))
    return tuple(newest_first[REVISIONS_KEPT - 1 :])


def _identity(obj: Object) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]


def _owned(obj: Object, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in obj["metadata"].get("ownerReferences", ()))


def _hash_of(stored: Object) -> str:
    return str(stored["metadata"].get("annotations", {}).get(contract.ANNOTATION_TEMPLATE_HASH, ""))


def control_token(snapshot: Snapshot) -> str | None:
    """The token in the control Secret; None when there is none that can be used."""
    found = _secret(snapshot, names.control_secret(snapshot.key.name)).get(contract.CONTROL_TOKEN_KEY, b"")
    try:
        token = found.decode("ascii")
    except UnicodeDecodeError:
        return None
    return token if len(token) >= 32 and token.isprintable() else None


def stored_certificates(snapshot: Snapshot, now: datetime) -> certificates.Certificates | None:
    """None when there are none that can be used."""
    return certificates.stored(_secret(snapshot, names.authority_secret(snapshot.key.name)), now)


def access(snapshot: Snapshot) -> Access | None:
    """To the pods' control ports; None without a token. What is wrong with a certificate, a pod says."""
    token = control_token(snapshot)
    if token is None:
        return None
    data = _secret(snapshot, names.authority_secret(snapshot.key.name))
    parts = [
        data.get(key, b"") for key in (contract.CONTROL_TLS_AUTHORITIES, certificates.CLIENT, certificates.CLIENT_KEY)
    ]
    return Access(token, ClientTls(*parts) if all(parts) else None)


def _secret(snapshot: Snapshot, name: str) -> dict[str, bytes]:
    """Its data; without what is damaged."""
    data = {}
    for key, encoded in snapshot.children.get(("Secret", name), {}).get("data", {}).items():
        with suppress(binascii.Error, TypeError):
            data[key] = base64.b64decode(encoded, validate=True)
    return data


# --- policy ---


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
    is_biased = (snapshot.status.get("policy") or {}).get("mode") == str(Mode.THROUGHPUT)
    mode = biased_mode(asked, _staffing(snapshot, spec), is_biased, calm_seconds)
    if mode is not asked:
        return Policy(str(mode))
    moved = adaptive_tokens(snapshot, spec)
    return spec.policy if moved is None else replace(spec.policy, threshold_tokens=moved)


def adaptive_tokens(snapshot: Snapshot, spec: Spec) -> int | None:
    """The threshold that was moved, as the status has it; None while it is the user's or the pods' own."""
    if spec.adaptive.mode is not AdaptiveMode.APPLY:
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


# --- scaling ---


@dataclass(frozen=True)
class TokenSample:
    """Tokens per gear of one pod at one moment, to take shares over a window."""

    at: float
    tokens: Mapping[str, int]


def sample(state: RuntimeState) -> TokenSample:
    return TokenSample(state.read_at, {gear.name: gear.tokens for gear in state.gears})


def throughput_share(state: RuntimeState, since: TokenSample | None) -> float:
    """Share of the tokens since then that did not run in the tp gear; 1 when there is no other gear, or no token."""
    before = since.tokens if since is not None else {}
    if len(state.gears) < 2:
        return 1.0
    made = {gear.name: max(0, gear.tokens - before.get(gear.name, 0)) for gear in state.gears}
    total = sum(made.values())
    slow = sum(made[gear.name] for gear in state.gears if gear.sequence == 1)
    return 1.0 - slow / total if total else 1.0


def observation(
    snapshot: Snapshot,
    spec: Spec,
    since: Mapping[str, TokenSample],
    now: float,
    leaving: tuple[Pod, ...] = (),
) -> scaling.Observation:
    """What the autoscaler is told. `since`: an earlier sample of each pod's tokens, by uid; `now`: seconds since 1970;
    `leaving` pods are counted as gone, and the replicas that they take up with them."""
    gone = {pod.uid for pod in leaving}
    staying = sorted((p for p in snapshot.live_pods if p.uid not in gone), key=lambda pod: pod.changed_at or now)
    ready = [pod for pod in staying if pod.ready]
    return scaling.Observation(
        replicas=spec.replicas - len(leaving),
        ready=len(ready),
        pods=tuple(
            pod_load(pod.name, spec, snapshot.states[pod.uid], since.get(pod.uid))
            for pod in ready
            if pod.uid in snapshot.states
        ),
        starting_seconds=tuple(
            0.0 if pod.changed_at is None else max(0.0, now - pod.changed_at) for pod in staying if not pod.ready
        ),
        stopping=len(snapshot.pods) - len(staying),
        rolling=rollout.rolling(snapshot),
    )


def pod_load(name: str, spec: Spec, state: RuntimeState, since: TokenSample | None) -> scaling.PodLoad:
    load = state.load
    gear = tp_gear(spec.gpus).name if spec.policy.mode == "Latency" else state.base_gear
    measured = next((g for g in state.gears if g.name == gear), None)
    used = load.kv_blocks_total - load.kv_blocks_free
    return scaling.PodLoad(
        name=name,
        measured_at=state.read_at,
        prompt_tokens_per_second=load.prompt_tokens_per_second,
        output_tokens_per_second=load.output_tokens_per_second,
        waiting_tokens=load.waiting_tokens,
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        max_running_requests=load.max_running_requests,
        oldest_wait_seconds=load.oldest_wait_seconds,
        kv_used_fraction=used / load.kv_blocks_total if load.kv_blocks_total else 0.0,
        ttft_seconds=load.ttft_at(spec.autoscaling.percentile),
        tpot_seconds=load.tpot_at(spec.autoscaling.percentile),
        capacity_tokens_per_second=measured.capacity_tokens_per_second if measured else 0.0,
        step_seconds=measured.step_seconds if measured else 0.0,
        throughput_share=throughput_share(state, since),
    )
