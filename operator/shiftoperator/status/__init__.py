"""What the status of a ShiftDeployment should say, and what of it changed."""

from shiftoperator.status import reasons
from shiftoperator.status.changes import Transition, patch, raised_generation, transitions, unseen
from shiftoperator.status.conditions import conditions
from shiftoperator.status.figures import figures
from shiftoperator.status.report import build
from shiftoperator.status.view import Outcome, Rejected, Scaling

__all__ = [
    "Outcome",
    "Rejected",
    "Scaling",
    "Transition",
    "build",
    "conditions",
    "figures",
    "patch",
    "raised_generation",
    "reasons",
    "transitions",
    "unseen",
]
