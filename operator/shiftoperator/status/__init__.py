"""What the status of a ShiftDeployment should say, and what of it changed."""

from shiftoperator.status.conditions import Outcome, Scaling, conditions
from shiftoperator.status.report import Transition, build, patch, raised_generation, transitions

__all__ = [
    "Outcome",
    "Scaling",
    "Transition",
    "build",
    "conditions",
    "patch",
    "raised_generation",
    "transitions",
]
