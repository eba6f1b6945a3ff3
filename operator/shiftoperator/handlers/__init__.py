"""From watch events to reconciles: kopf delivers events, one worker per object does the work."""

from shiftoperator.handlers.controller import Controller
from shiftoperator.handlers.events import operator_settings, register, run, sweep

__all__ = ["Controller", "operator_settings", "register", "run", "sweep"]
