"""What the engine's own process takes of a decode step: schedule, plan, frames, and the answers to the front end.

python benchmarks/planning.py [--ranks 8] [--steps 200] [--rounds 5]

The ranks answer at once, so that nothing else is in the figure. This is what the engine does while ranks run the step
before; what a rank does of a step beside its model (inputs, sampling) is not in it, and passes in a rank's own time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import msgspec
from shiftcore.gears import GearTable
from shiftcore.layout import Gear
from shiftruntime.engine.engine import Engine
from shiftruntime.engine.messages import Sampling, Submit
from shiftruntime.engine.options import EngineOptions
from shiftruntime.worker.frames import FrameBuffer, pack
from shiftruntime.worker.messages import Done, StepPlan

_SEQUENCES = (1, 8, 64, 256, 1024)
_PROMPT_TOKENS = 500
_BATCHED_TOKENS = 8192
_BLOCK_SIZE = 16


class _Ranks:
    """Pack what is sent and unpack what is answered, as a group of real ranks does."""

    def __init__(self, size: int) -> None:
        self.last_step = 0
        self.last_answer_seconds = time.monotonic()
        self._begun: deque[StepPlan] = deque()
        self._buffers: list[FrameBuffer[Done]] = [FrameBuffer(Done) for _ in range(size)]

    def run(self, plan: StepPlan) -> Done:
        self.begin(plan)
        return self.end()

    def begin(self, plan: StepPlan) -> None:
        self.last_step = plan.step
        pack(plan)
        self._begun.append(plan)

    def end(self) -> Done:
        plan = self._begun.popleft()
        sampling = sum(chunk.sample is not None for chunk in plan.chunks)
        frame = pack(Done(plan.step, plan.generation, (7,) * sampling, (-1.0,) * sampling))
        dones = [done for buffer in self._buffers for done in buffer.feed(frame)]
        return dones[0]


def _engine(ranks: int, sequences: int, tokens: int) -> Engine:
    gear = Gear(ranks, 1)
    options = EngineOptions(
        "/nowhere", ranks, gear, max_num_seqs=sequences, max_batched_tokens=_BATCHED_TOKENS,
        max_waiting_requests=sequences, block_size=_BLOCK_SIZE,
    )  # fmt: skip
    length = _PROMPT_TOKENS + tokens
    started: Any = SimpleNamespace(
        table=GearTable(gear, {}), dtype="float32", max_model_len=length, self_check=None,
        num_blocks=sequences * -(-length // _BLOCK_SIZE),
        config=SimpleNamespace(group_windows=(None,), vocab_size=128_256),
    )  # fmt: skip
    parts: tuple[Any, Any] = (SimpleNamespace(), _Ranks(ranks))
    engine = Engine(options, parts[0], started, parts[1], send=lambda message: _send(message))
    for number in range(sequences):
        prompt = tuple((number * 7919 + i) % 100_000 for i in range(_PROMPT_TOKENS))  # of no common prefix
        engine.handle(Submit(f"request-{number}", prompt, Sampling(0.0, 1.0, 0, tokens)))
    return engine


def _send(message: msgspec.Struct) -> None:
    pack(message)


def _step_seconds(ranks: int, sequences: int, steps: int) -> float:
    """Processor time of one step in which all sequences decode."""
    prompts = sequences * _PROMPT_TOKENS // _BATCHED_TOKENS  # steps until the last one reads
    engine = _engine(ranks, sequences, steps + 2 * prompts + 16)
    while engine.scheduler.waiting or any(request.missing > 1 for request in engine.scheduler.running):
        engine.step()
    for _ in range(4):
        engine.step()
    assert len(engine.scheduler.running) == sequences, "some ended before the last began"
    started = time.process_time()
    for _ in range(steps):
        engine.step()
    return (time.process_time() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found = {}
    for sequences in _SEQUENCES:
        steps = max(10, args.steps // max(1, sequences // 16))
        found[sequences] = [_step_seconds(args.ranks, sequences, steps) for _ in range(args.rounds)]
        middle = statistics.median(found[sequences])
        print(f"{sequences:5} sequences: {middle * 1e6:8.0f} µs a step, from {min(found[sequences]) * 1e6:.0f} to "
              f"{max(found[sequences]) * 1e6:.0f}", flush=True)  # fmt: skip
    first, last = _SEQUENCES[0], _SEQUENCES[-1]
    each = (statistics.median(found[last]) - statistics.median(found[first])) / (last - first)
    print(f"{(statistics.median(found[first]) - each * first) * 1e6:.0f} µs and {each * 1e6:.2f} µs per sequence")


if __name__ == "__main__":
    main()
