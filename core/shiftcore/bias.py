"""Policy of the pods that serve while others load, are replaced or leave.

They carry the load of all meanwhile. Under ``Auto`` a threshold that suits the whole service, or a small decode batch,
keeps part of their steps in the tp gear; what a pod needs that is full is room, so the throughput gear is pinned until
the others are back. One that has room stays as it is: there the bias costs latency and buys nothing. Traffic comes in
bursts, and every change of the policy is a push to all pods: only a lasting calm ends the bias.

In simulation the bias has bought something only from pods that are past what they can carry and whose threshold is far
above the crossover; below that it costs up to three times the time per token (docs/LOG.md, 2026-11-22).
"""

from __future__ import annotations

from dataclasses import dataclass

from shiftcore.policy import Mode

# How busy the busiest pod is when the bias begins, and below which it ends although pods are still away, once it was
# so for this time without a break.
BEGINS_AT = 1.0
ENDS_BELOW = 0.5
CALM_SECONDS = 60.0


@dataclass(frozen=True)
class Staffing:
    """``asked`` and ``serving`` count pods; ``replacing`` while pods of an older revision are left. ``busy`` is the
    share of the fullest resource of the busiest serving pod, 1 when requests wait."""

    asked: int
    serving: int
    replacing: bool
    busy: float

    @property
    def short(self) -> bool:
        return self.serving > 0 and (self.serving < self.asked or self.replacing)

    @property
    def calm(self) -> bool:
        return self.busy < ENDS_BELOW


def biased_mode(wanted: Mode, seen: Staffing, biased: bool, calm_seconds: float = 0.0) -> Mode:
    """The mode to set. ``biased``: whether it is set already; ``calm_seconds``: for how long it has been calm. A mode
    that pins a gear is the user's and stays."""
    if wanted is not Mode.AUTO or not seen.short:
        return wanted
    stays = biased and not (seen.calm and calm_seconds >= CALM_SECONDS)
    return Mode.THROUGHPUT if stays or seen.busy >= BEGINS_AT else wanted
