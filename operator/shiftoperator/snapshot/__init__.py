"""What was seen of one ShiftDeployment at one moment: frozen, and free of any client library."""

from shiftoperator.snapshot.model import (
    MESSAGE_LIMIT,
    Access,
    ClientTls,
    Failure,
    GearState,
    Load,
    Object,
    Obstacle,
    Phase,
    Pod,
    RuntimeState,
    SelfCheck,
    Snapshot,
    identity,
    slowest,
)
from shiftoperator.snapshot.pods import pod_from

__all__ = [
    "MESSAGE_LIMIT",
    "Access",
    "ClientTls",
    "Failure",
    "GearState",
    "Load",
    "Object",
    "Obstacle",
    "Phase",
    "Pod",
    "RuntimeState",
    "SelfCheck",
    "Snapshot",
    "identity",
    "pod_from",
    "slowest",
]
