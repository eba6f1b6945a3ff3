"""What is kept of one object between two passes."""

from __future__ import annotations

from dataclasses import dataclass, field

from shiftoperator import adapt, autoscale, plan, revise
from shiftoperator.errors import UserError
from shiftoperator.snapshot import Object, Snapshot


@dataclass
class Memory:
    """All of it can be lost: it is gathered again."""

    snapshot: Snapshot | None = None
    scaling: autoscale.Memory = field(default_factory=autoscale.Memory)
    adapting: adapt.Memory = field(default_factory=adapt.Memory)
    revising: revise.Memory = field(default_factory=revise.Memory)
    # How far the steps that fetch were, by uid of their pods.
    fetches: dict[str, plan.Moved] = field(default_factory=dict)
    # What the last full pass wrote, by (kind, name); None unless it came to its end.
    written: dict[tuple[str, str], Object | None] | None = None
    # Since when pods that serve are hardly used; None while they are not.
    calm_since: float | None = None
    # Why the last full pass could not do what the resource asks for; a pass that is not full does not try again.
    refused: UserError | None = None

    @property
    def known(self) -> Snapshot:
        assert self.snapshot is not None, "a pass observes before it decides"
        return self.snapshot
