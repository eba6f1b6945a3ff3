"""What is kept of one object between two passes."""

from __future__ import annotations

from dataclasses import dataclass, field

from shiftoperator import adapt, autoscale, plan, revise
from shiftoperator.errors import WRITE_FAILING, TransientError, UserError
from shiftoperator.snapshot import Object, Snapshot

# Most of what does not pass at once has passed by then, and a status that comes and goes helps nobody.
WRITES_FAIL_SECONDS = 10.0


@dataclass(frozen=True)
class Failing:
    """Children that cannot be written: since when, on the operator's clock, in which call, and what is said of it."""

    since: float
    call: str
    told: UserError

    @classmethod
    def after(cls, known: Failing | None, error: TransientError, now: float) -> Failing:
        call = str(error).partition(": ")[0]
        if known is not None and known.call == call:
            # The words of the same failure may differ each time, by a port or a duration; they are told once.
            return known
        message = (
            "a child cannot be written, and it is tried again; mend what the API server names, such as an admission "
            f"webhook that does not answer: {error}"
        )
        return cls(now if known is None else known.since, call, UserError(WRITE_FAILING, message))

    def lasts(self, now: float) -> bool:
        return now - self.since >= WRITES_FAIL_SECONDS


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
    # Set while the last full pass could not write the children for a reason that passes by itself.
    failing: Failing | None = None

    @property
    def known(self) -> Snapshot:
        assert self.snapshot is not None, "a pass observes before it decides"
        return self.snapshot
