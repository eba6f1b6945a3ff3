"""Start-up proof that all gears compute the same model: teacher-forced log probabilities, one prompt, every gear.

A wrong head order or an unbound cache changes no shape and crashes nothing; it shows here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from shiftcore.layout import Gear

from shiftruntime.engine.messages import SelfCheckState
from shiftruntime.worker.messages import ChunkPlan

# Differences of a log probability (nats) between gears that rounding explains, largest and mean of the worst gear:
# sums are split differently. The prompt is no text, its tokens are unlikely and their logits large, so that bfloat16
# with its 8 bits is coarse. Its two stand between what was measured on Gemma 3 270M (docs/LOG.md): right gears differ
# by at most 2.0 and 0.28; of the bugs that the prompt can show, a gear with a cache of its own differs least, by 5.3
# and 1.1.
TOLERANCES = {"float64": (1e-8, 1e-9), "float32": (2e-3, 2e-4), "bfloat16": (4.0, 0.6)}
SELF_CHECK_TOKENS = 40  # in one step

Score = Callable[[Gear, ChunkPlan], tuple[float, ...]]


def self_check(score: Score, gears: tuple[Gear, ...], *, dtype: str, exact: bool, vocab_size: int, max_model_len: int,
               block_size: int, layer_groups: int = 1) -> SelfCheckState:  # fmt: skip
    """Score one prompt whole in each gear, then another with a shift after every third of it, on the same blocks.

    What the first prompt leaves in the blocks is wrong for the second: a gear that does not see what another has
    written, since it has a cache of its own, reads that.
    """
    length = min(SELF_CHECK_TOKENS, max_model_len)
    whole, shifted = _prompt(length, vocab_size, 7919), _prompt(length, vocab_size, 6007)
    per_group = -(-length // block_size)
    tables = tuple(tuple(range(i * per_group, (i + 1) * per_group)) for i in range(layer_groups))
    # In this order: every gear's last word before the shifts is the first prompt.
    references = {tokens: _run(score, [gears[0]], tokens, tables) for tokens in (shifted, whole)}
    paths = [([gear], whole) for gear in gears[1:]]
    paths += [(_rotation(gears, first), shifted) for first in range(len(gears))]
    worst = mean = 0.0
    for path, tokens in paths:
        got = _run(score, path, tokens, tables)
        differences = [abs(a - b) for a, b in zip(got, references[tokens], strict=True)]
        # Each path by itself: gears that agree must not hide one that does not.
        worst = _larger(worst, *differences)
        mean = _larger(mean, sum(differences) / len(differences))
    tolerance, mean_tolerance = (0.0, 0.0) if exact else TOLERANCES[dtype]
    names = tuple(gear.name for gear in gears)
    # Written so that NaN fails.
    passed = worst <= tolerance and mean <= mean_tolerance
    verdict = "agree" if passed else "disagree"
    message = f"{', '.join(names)} {verdict}: log probabilities differ by at most {worst:.2g} and, in the worst gear, "
    message += f"{mean:.2g} on average; {tolerance:.2g} and {mean_tolerance:.2g} are tolerated in {dtype}"
    return SelfCheckState(passed, worst, tolerance, names, message)


def _run(score: Score, path: list[Gear], tokens: tuple[int, ...], tables: tuple[tuple[int, ...], ...]) -> list[float]:
    """Log probability of each next token; the prompt is cut evenly over the gears of the path."""
    known, targets = tokens[:-1], tokens[1:]
    step = -(-len(known) // len(path))
    result: list[float] = []
    for i, gear in enumerate(path):
        part = slice(i * step, (i + 1) * step)
        if known[part]:
            result += score(gear, ChunkPlan(known[part], i * step, tables[0], None, targets[part], tables[1:]))
    return result


def _larger(*values: float) -> float:
    """The largest, NaN above all: max() drops it."""
    return max(values, key=lambda value: math.inf if math.isnan(value) else value)


def _rotation(gears: tuple[Gear, ...], first: int) -> list[Gear]:
    """Three parts, each in the gear after the last one's."""
    return [gears[(first + i) % len(gears)] for i in range(3)]


def _prompt(length: int, vocab_size: int, stride: int) -> tuple[int, ...]:
    """Token ids that are spread over the vocabulary and the same on every start."""
    return tuple((stride * i + 104_729) % vocab_size for i in range(length))
