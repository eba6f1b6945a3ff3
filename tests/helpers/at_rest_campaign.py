"""Rest for half an hour, at the operator's own pace."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.at_rest import SETTLED, writes_at_rest
from helpers.campaign_outcome import Outcome
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.plane import HOW_TO_BUILD, control_plane, find_binary

SECONDS = 1800.0
DEFAULT_PACE = {"SHIFT_RESYNC_SECONDS": "", "SHIFT_POLL_SECONDS": "", "SHIFT_LEASE_SECONDS": ""}


def at_rest(_seed: int, scale: float) -> Outcome:
    """Bad are writes beside the renewals of the Lease; the seed plays no part."""
    kube = find_binary()
    if kube is None:
        return Outcome(0, "seconds", 1, (HOW_TO_BUILD,))
    seconds = max(60.0, SECONDS * scale)
    with (
        TemporaryDirectory() as folder,
        control_plane(kube, Path(folder) / "plane") as plane,
        Kubelet(plane) as kubelet,
    ):
        plane.create_namespace("rest")
        log = Path(folder) / "operator.log"
        writes, renewals = writes_at_rest(plane, kubelet, "rest", log, seconds, **DEFAULT_PACE)
        lost = log.read_text(errors="replace").count("lost leadership")
    # Who leads anew tries once what was refused.
    notes = [f"{len(SETTLED)} ShiftDeployments, {renewals} renewals of the Lease, the lead lost {lost} times"]
    notes += [f"{call}: {count} times" for call, count in writes.items()]
    return Outcome(round(seconds), "seconds", sum(writes.values()), tuple(notes))
