"""Control calls: what they change, and what waits for an idle moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec
from shiftcore.costs import CostCurve
from shiftcore.gears import GearTable, budget_note
from shiftcore.layout import Gear
from shiftcore.policy import Policy, PolicyError, StaleGenerationError, accept
from shiftcore.scheduler import Scheduler
from shiftprotos import contract

from shiftruntime.engine.calibration import Interrupted
from shiftruntime.engine.messages import Answer, Call, EngineState

_log = logging.getLogger(__name__)

Send = Callable[[msgspec.Struct], None]


class Control:
    """The policy in force, the gears with their costs, and whether the pod drains; ``call`` answers at once."""

    def __init__(
        self, table: GearTable, policy: Policy, scheduler: Scheduler, send: Send, state: Callable[[], EngineState]
    ) -> None:
        self._adopt(table, scheduler.limits.max_batched_tokens)
        self.policy = policy
        self.draining = False
        self._scheduler = scheduler
        self._send = send
        self._state = state
        self._calibrations: list[int] = []  # call ids that wait for an idle moment

    @property
    def wants_calibration(self) -> bool:
        return bool(self._calibrations)

    def call(self, call: Call) -> None:
        match call.verb:
            case "state":
                self._send(Answer(call.call_id, self._state()))
            case "set_policy":
                self._send(self._set_policy(call))
            case "drain":
                self.draining = True
                self._send(Answer(call.call_id, self._state()))
            case "calibrate":
                running = [request for request in self._scheduler.running if not request.ended]
                if running or self._scheduler.waiting:
                    text = f"{len(running)} requests run; drain the pod or wait, then calibrate"
                    self._send(Answer(call.call_id, error_kind=contract.REFUSED_BUSY, error=text))
                else:
                    self._calibrations.append(call.call_id)
            case verb:
                self._send(Answer(call.call_id, error_kind="InvalidCall", error=f"no verb {verb!r}"))

    def calibrate(self, measure: Callable[[], Mapping[Gear, CostCurve]]) -> None:
        """Nobody runs or waits: measure what the gears cost, for all who asked.

        A measurement that is interrupted changes nothing; whoever asked for it is or will be told why.
        """
        self._scheduler.clear_cache()
        try:
            costs = measure()
        except Interrupted:
            self.refuse_calibrations()
            return
        self._adopt(GearTable(self.table.base, costs), self._scheduler.limits.max_batched_tokens)
        for call_id in self._calibrations:
            self._send(Answer(call_id, self._state()))
        self._calibrations.clear()

    def _adopt(self, table: GearTable, max_batched_tokens: int) -> None:
        self.table = table
        if note := budget_note(table, max_batched_tokens):
            _log.warning("%s", note)

    def refuse_calibrations(self) -> None:
        """A request has come before the measurement was over: it does not wait for that."""
        for call_id in self._calibrations:
            self._send(Answer(call_id, error_kind=contract.REFUSED_BUSY, error="a request came first; calibrate again"))
        self._calibrations.clear()

    def _set_policy(self, call: Call) -> Answer:
        assert call.policy is not None, "set_policy without a policy"
        try:
            self.policy = accept(self.policy, call.policy, self.table.gears)
        except StaleGenerationError as error:
            return Answer(call.call_id, error_kind=contract.REFUSED_STALE_GENERATION, error=str(error))
        except PolicyError as error:
            return Answer(call.call_id, error_kind=contract.REFUSED_INVALID_POLICY, error=str(error))
        return Answer(call.call_id, self._state())
