"""What the autoscaler is told of the pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shiftcore import scaling
from shiftcore.loads import tokens_shifted

from shiftoperator import rollout
from shiftoperator.snapshot import Pod, RuntimeState, Snapshot
from shiftoperator.spec import Spec

# Over how long the share of tokens per gear is taken.
SHARE_SECONDS = 10.0


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
    made = {gear.name: max(0, gear.tokens - before.get(gear.name, 0)) for gear in state.gears}
    in_tp = sum(made[gear.name] for gear in state.gears if gear.sequence == 1)
    return tokens_shifted(in_tp, sum(made.values()), len(state.gears))


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
            0.0 if pod.start_began is None else max(0.0, now - pod.start_began) for pod in staying if not pod.ready
        ),
        stopping=len(snapshot.pods) - len(staying),
        rolling=rollout.rolling(snapshot),
    )


def pod_load(name: str, spec: Spec, state: RuntimeState, since: TokenSample | None) -> scaling.PodLoad:
    load = state.load
    pinned = spec.policy.mode == "Latency"
    # By what the pod says: one of another revision may have other gears than the spec.
    measured = next((g for g in state.gears if (g.sequence == 1 if pinned else g.name == state.base_gear)), None)
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
