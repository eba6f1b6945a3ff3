"""How the GPUs of a pod are used: engines side by side, and the gears of each."""

from __future__ import annotations

from dataclasses import dataclass

from shiftcore.layout import Gear, LayoutError, tp_gear
from shiftcore.policy import Policy, PolicyError

from shiftsim.errors import UserError

NAMES = ("dp", "tp", "sp", "shift", "shift-calibrated")
DEFAULT_THRESHOLD_TOKENS = 512  # of the published evaluation


@dataclass(frozen=True)
class Layout:
    """``pinned``: the only gear that runs, else all that can shift with ``base``."""

    name: str
    base: Gear
    pinned: Gear | None
    policy: Policy
    engines: int = 1


def parse(
    name: str, num_gpus: int, *, base: str | None = None, threshold_tokens: int = DEFAULT_THRESHOLD_TOKENS
) -> Layout:
    """One of NAMES or a gear such as ``sp4tp2``; ``base`` of the layouts that shift. Raises UserError."""
    wide = _gear(base, num_gpus) if base else Gear(num_gpus, 1)
    match name:
        case "dp":
            return _pinned(name, Gear(1, 1), engines=num_gpus)
        case "tp":
            return _pinned(name, tp_gear(num_gpus))
        case "sp":
            return _pinned(name, Gear(num_gpus, 1))
        case "shift":
            return Layout(name, wide, None, _policy(threshold_tokens))
        case "shift-calibrated":
            return Layout(name, wide, None, Policy())
    return _pinned(name, _gear(name, num_gpus))


def _policy(threshold_tokens: int) -> Policy:
    try:
        return Policy(threshold_tokens=threshold_tokens)
    except PolicyError as error:
        raise UserError(f"--threshold: {error}") from error


def _pinned(name: str, gear: Gear, engines: int = 1) -> Layout:
    return Layout(name, gear, gear, Policy(gear=gear.name), engines)


def _gear(name: str, num_gpus: int) -> Gear:
    try:
        gear = Gear.parse(name)
    except LayoutError:
        raise UserError(f"layout {name!r} is unknown; use {', '.join(NAMES)} or a gear such as sp4tp2") from None
    if gear.ranks != num_gpus:
        raise UserError(
            f"gear {name} is of {gear.ranks} GPUs, the hardware has {num_gpus}; their product must be equal"
        )
    return gear
