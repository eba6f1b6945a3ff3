"""`spec.placement`: on which nodes pods run, and before whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shiftoperator.errors import InvalidSpecError

_NAMES = ("priorityClassName", "runtimeClassName", "schedulerName")


@dataclass(frozen=True)
class Spread:
    """Pods of this ShiftDeployment over the values of a node's label."""

    topology_key: str
    max_skew: int = 1
    # Else it is a wish.
    required: bool = False


@dataclass(frozen=True)
class Placement:
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    spread: tuple[Spread, ...] = ()
    # Fields of a pod's spec as they are there.
    names: dict[str, str] = field(default_factory=dict)


def placement(asked: dict[str, Any]) -> Placement:
    spread = tuple(
        Spread(one["topologyKey"], one.get("maxSkew", 1), one.get("required", False)) for one in asked.get("spread", ())
    )
    keys = [one.topology_key for one in spread]
    if len(keys) != len(set(keys)):
        raise InvalidSpecError(f"placement.spread has a topologyKey twice among {', '.join(keys)}")
    return Placement(
        dict(asked.get("nodeSelector", {})),
        tuple(asked.get("tolerations", ())),
        spread,
        {name: asked[name] for name in _NAMES if name in asked},
    )
