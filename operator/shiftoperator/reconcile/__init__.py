"""One pass over one ShiftDeployment: observe, decide, plan, apply."""

from shiftoperator.reconcile.memory import Memory
from shiftoperator.reconcile.passes import Reconciler
from shiftoperator.reconcile.policies import Policies

__all__ = ["Memory", "Policies", "Reconciler"]
