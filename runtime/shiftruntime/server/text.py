"""From token ids to the text of one completion: detokenise, cut at stop strings, hide the stop token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from shiftruntime.server.stops import StopMatcher


class Decoder(Protocol):
    """What is needed of shiftruntime.models.tokenizer.StreamDecoder."""

    def push(self, token: int) -> str: ...
    def flush(self) -> str: ...


class Completion:
    """The text of one request, fed with its tokens in order."""

    def __init__(
        self,
        decoder: Decoder,
        stops: Sequence[str],
        stop_token_ids: Collection[int],
        min_tokens: int = 0,
        include_stop: bool = False,
    ) -> None:
        """Stop strings count once more than ``min_tokens`` are there, as stop tokens do."""
        self._decoder = decoder
        self._matcher = StopMatcher(stops, include_stop)
        self._silent_ids = frozenset(() if include_stop else stop_token_ids)
        self._min_tokens = min_tokens
        self.tokens = 0

    @property
    def stopped(self) -> bool:
        """A stop string was met; nothing more will be shown."""
        return self._matcher.met

    @property
    def _may_stop(self) -> bool:
        return not self._min_tokens or self.tokens > self._min_tokens

    def push(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """(new text, how many of the tokens belong to the completion: all, or those up to the stop string)."""
        shown = ""
        for used, token_id in enumerate(token_ids, start=1):
            self.tokens += 1
            if token_id not in self._silent_ids:  # it ends the request and has no text
                shown += self._matcher.push(self._decoder.push(token_id), self._may_stop)
            if self._matcher.met:
                return shown, used
        return shown, len(token_ids)

    def finish(self) -> str:
        """The rest of the text; a stop string may still be completed by it."""
        if self._matcher.met:
            return ""
        shown = self._matcher.push(self._decoder.flush(), self._may_stop)
        return shown if self._matcher.met else shown + self._matcher.flush()
