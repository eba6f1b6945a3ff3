"""Tokens per second with and without scheduling a step while the ranks run the one before, interleaved.

python benchmarks/overlap.py [MODEL] [--ranks 2] [--streams 8] [--tokens 128] [--pairs 5]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from engines import arguments, generate, options, run, running

_PROMPT = tuple(range(5, 21))


async def measure(args: argparse.Namespace) -> None:
    ratios = []
    for pair in range(args.pairs):
        rates = {}
        for overlap in ((True, False), (False, True))[pair % 2]:
            rates[overlap] = await _rate(args, overlap)
        ratios.append(rates[True] / rates[False])
        print(f"pair {pair + 1}: {rates[True]:.1f} tokens/s overlapped, {rates[False]:.1f} one after the other, "
              f"ratio {ratios[-1]:.3f}", flush=True)  # fmt: skip
    print(f"median ratio {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


async def _rate(args: argparse.Namespace, overlap: bool) -> float:
    async with running(options(args.model, args.ranks, calibrate=False, overlap=overlap)) as client:
        await asyncio.gather(*(generate(client, f"warm {i}", _PROMPT, 8) for i in range(args.streams)))
        started = time.monotonic()
        made = await asyncio.gather(*(generate(client, f"{i}", _PROMPT, args.tokens) for i in range(args.streams)))
        return sum(made) / (time.monotonic() - started)


def main() -> None:
    parser = arguments(__doc__, ranks=2)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    run(measure, parser.parse_args())


if __name__ == "__main__":
    main()
