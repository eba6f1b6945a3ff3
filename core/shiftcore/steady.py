"""A scheduler that can skip the steps in which it has nothing to decide.

While the same requests decode, one step is like the one before, and millions of them pass between the moments at which
something happens. Who drives a scheduler over days of traffic on a clock of its own, as the simulator does, need not
take them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

from shiftcore.block_tables import SequenceBlocks
from shiftcore.request import Chunk, Request
from shiftcore.scheduler import Scheduler


class SteadyScheduler(Scheduler):
    """Both methods are for between ``complete`` and ``schedule``.

    A loop that plans a step ahead has one in flight there: it is then the first of those that repeat, and one like it
    is in flight after them. Without one in flight they are the steps of a loop that plans each when it begins.
    """

    def steady_steps(self) -> int:
        """How many steps would only repeat: the running requests decode a token each; nobody begins, ends or gives way.

        As long as no request comes or goes, and each step has budget for all. 0 where that is not sure: also with a
        prefix cache, windows, deadlines or tokens that stop, since a step then depends on more than counts of tokens.
        """
        if self._num_timed or self._ahead or not self._tables.count_only:
            return 0
        flying = len(self._in_flight)
        if flying not in (0, len(self.running)) or any(chunk.length > 1 for chunk in self._in_flight):
            return 0
        steps = _steps_until_change(self.running, int(flying > 0))
        if steps < 1 or len(self.running) > self.limits.max_batched_tokens or not self._nobody_begins():
            return 0
        return self._tables.turns_with_room([_holder(request) for request in self.running], steps)

    def repeat(self, steps: int, token: int = 0) -> None:
        """As ``schedule`` and ``complete`` with this token for all, so many times, of the ``steady_steps``."""
        ordered = sorted(self.running, key=lambda request: request.importance)
        self._tables.extend_in_turns([_holder(request) for request in ordered], steps)
        tokens = (token,) * steps
        for request in ordered:
            request.tokens.extend(tokens)
            request.scheduled += steps
            request.computed += steps
            request.prompt_computed = True
            self._charge(request)
        if self._in_flight:
            self._in_flight = tuple(Chunk(r, r.scheduled - 1, 1, samples=True, follows=True) for r in ordered)

    def _nobody_begins(self) -> bool:
        """Whether nobody who waits finds room while those who run take more and more blocks."""
        if not self.waiting or len(self.running) in (self.limits.max_num_seqs, self.limits.max_batched_tokens):
            return True
        request = self.waiting.first(self._may_begin)
        # With several tenants it may become another's turn.
        if request is None or request.sequence is None or self.waiting.num_tenants > 1:
            return False
        return not self._has_room(request, self._tables.find(request.sequence, request.tokens))


def _steps_until_change(running: Sequence[Request], foreseen: int) -> int:
    """Steps before the one that yields somebody's last token; 0 unless all of these decode."""
    least = 0
    for request in running:
        if request.missing != 1 or request.foreseen != foreseen or request.stop_token_ids:
            return 0
        left = request.most_tokens - len(request.tokens)
        least = min(least, left) if least else left
    return least - 1


def _holder(request: Request) -> tuple[SequenceBlocks, int]:
    assert request.sequence is not None, f"request {request.id} runs without blocks"
    return request.sequence, request.scheduled
