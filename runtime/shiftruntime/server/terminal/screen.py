"""What a person sees besides the text: progress while loading, a line after an answer, statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import TextIO

from shiftruntime.engine.messages import EngineState, PhaseUpdate, Ready
from shiftruntime.server.lifecycle import describe_phase
from shiftruntime.server.request import Delta

# Without a terminal a running phase is told again after this long.
REPEAT_SECONDS = 10.0
_NO_CONTROLS = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t")
_CLEAR, _DIM, _PLAIN = "\r\x1b[K", "\x1b[2m", "\x1b[0m"


@dataclass
class Screen:
    """Lines beside the text. On a terminal progress is one line that changes; elsewhere each phase has its lines."""

    stream: TextIO
    terminal: bool
    _told: dict[str, float] = field(default_factory=dict)
    _open: bool = False  # a progress line stands without an end

    def phase(self, update: PhaseUpdate) -> None:
        if self.terminal:
            self._write(f"{_CLEAR}{_DIM}{describe_phase(update)}{_PLAIN}" + ("\n" if update.done else ""))
            self._open = not update.done
        elif update.done or update.seconds - self._told.get(update.name, 0.0) >= REPEAT_SECONDS:
            self._told[update.name] = update.seconds
            self._write(f"{describe_phase(update)}\n")

    def note(self, line: str) -> None:
        """A line of its own."""
        if self._open:
            self._write("\n")
            self._open = False
        self._write(f"{self.dim(line)}\n")

    def dim(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self.terminal else text

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def safe(text: str, out: TextIO) -> str:
    """A model's text for ``out``. A terminal gets no control characters: they could rewrite what a person has read."""
    return text.translate(_NO_CONTROLS) if out.isatty() else text


@dataclass
class Timing:
    """When the tokens of one answer came."""

    began: float = field(default_factory=monotonic)
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    def add(self, delta: Delta) -> None:
        if delta.token_ids:
            self.last = monotonic()
            self.first = self.last if self.first is None else self.first
            self.tokens += len(delta.token_ids)

    def line(self, last: Delta | None) -> str:
        """``24 tokens, 31.5 tokens/s, first after 0.12 s, gears tp2 75 %, sp2 25 %``."""
        parts = [f"{self.tokens} tokens"]
        if self.first is not None:
            if self.tokens > 1 and self.last > self.first:
                parts.append(f"{(self.tokens - 1) / (self.last - self.first):.1f} tokens/s")
            parts.append(f"first after {self.first - self.began:.2f} s")
        journey = last.journey if last else None
        if journey is not None and journey.gear_share:
            shares = sorted(journey.gear_share.items(), key=lambda item: -item[1])
            parts.append("gears " + ", ".join(f"{gear} {100 * share:.0f} %" for gear, share in shares))
        if last is not None and last.usage is not None and last.usage.cached_tokens:
            parts.append(f"{last.usage.cached_tokens} of {last.usage.prompt_tokens} prompt tokens from the cache")
        return ", ".join(parts)


def ready_line(ready: Ready, state: EngineState) -> str:
    pinned = state.threshold_tokens is None  # 0 is a threshold: no step is worth the tp gear
    threshold = "gear pinned by the policy" if pinned else f"threshold {state.threshold_tokens} tokens"
    gears = ", ".join(ready.gears)
    return f"{ready.architecture}, {ready.dtype}, {ready.max_model_len} tokens; gears {gears}; {threshold}"


def statistics(state: EngineState) -> Iterator[str]:
    for gear in state.gears:
        yield f"gear {gear.name}: {gear.steps} steps, {gear.tokens} tokens, {gear.busy_seconds:.1f} s"
    yield f"{state.shifts} shifts between gears"
    load = state.load
    yield f"KV cache: {load.kv_blocks_total - load.kv_blocks_free} of {load.kv_blocks_total} blocks used"
