"""How busy a pod is, so coarse that the status need not follow every request.

A band rises at once. It falls by one step at a time and only after a while, and a pod is idle only when nothing ended
within the last minute.
"""

from __future__ import annotations

from collections.abc import Mapping

from shiftoperator.snapshot import Load, RuntimeState
from shiftoperator.status.view import seconds_between

IDLE, LOW, MEDIUM, HIGH, FULL = "idle", "low", "medium", "high", "full"
BANDS = (IDLE, LOW, MEDIUM, HIGH, FULL)

# From which share of the fullest resource on a pod is in a band; it leaves the band below the share less the margin.
_FROM = {LOW: 0.0, MEDIUM: 0.3, HIGH: 0.6, FULL: 0.9}
_MARGIN = 0.1
FALL_SECONDS = 30.0


def load(state: RuntimeState, before: Mapping[str, str], now: str) -> dict[str, str]:
    """`load` and `loadSince` of a pod in the status; `before` is what the status says of it now."""
    known, since = before.get("load", ""), before.get("loadSince")
    raw = _band(state, 0.0)
    if known not in BANDS or since is None:
        return {"load": raw, "loadSince": now}
    if BANDS.index(raw) > BANDS.index(known):
        return {"load": raw, "loadSince": now}
    falls = BANDS.index(_band(state, _MARGIN)) < BANDS.index(known)
    if falls and seconds_between(since, now) >= FALL_SECONDS:
        return {"load": BANDS[BANDS.index(known) - 1], "loadSince": now}
    return {"load": known, "loadSince": since}


def _band(state: RuntimeState, margin: float) -> str:
    load = state.load
    if _quiet(load):
        return IDLE
    if load.waiting_requests and 0 < load.max_running_requests <= load.running_requests:
        return FULL
    share = busy_share(state)
    reached = [band for band, least in _FROM.items() if share >= least - margin]
    return reached[-1] if reached else LOW


def _quiet(load: Load) -> bool:
    present = load.running_requests + load.waiting_requests
    lately = any(load.ttft_seconds.values()) or any(load.tpot_seconds.values())
    return not (present or lately or demand(load))


def busy_share(state: RuntimeState) -> float:
    """Of the fullest of slots, KV cache and throughput; about 0..1."""
    load = state.load
    slots = load.running_requests / load.max_running_requests if load.max_running_requests else 0.0
    # What an idle pod still holds is free as soon as a request comes.
    used = load.kv_blocks_total - load.kv_blocks_free if load.running_requests else 0
    cache = used / load.kv_blocks_total if load.kv_blocks_total else 0.0
    capacity = max((gear.capacity_tokens_per_second for gear in state.gears), default=0.0)
    return max(slots, cache, demand(load) / capacity if capacity > 0 else 0.0)


def demand(load: Load) -> float:
    """Tokens per second that arrive and that are made."""
    return load.prompt_tokens_per_second + load.output_tokens_per_second
