"""What more than two gears buy: every gear's time for a step of n tokens, measured as at start-up, and who is fastest.

    python benchmarks/gears.py [MODEL] [--ranks 4] [--runs 3] [--largest 512]

``two`` is the better of the base gear and the tp gear, as with a threshold at their crossover; ``all`` is the best of
every gear. Their ratio is what the gears in between buy, and counts only where it lies outside the spread.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict

from engines import arguments, options, run, running


async def measure(args: argparse.Namespace) -> None:
    seconds: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(args.runs):
        async with running(options(args.model, args.ranks, max_batched_tokens=args.largest)) as client:
            state = await client.state()
        print(f"crossover of the outer gears: {state.crossover_tokens or state.crossover_message}", flush=True)
        for gear in state.gears:
            for point in gear.costs:
                seconds[point.tokens][gear.name].append(point.median_seconds)
    names = [gear.name for gear in state.gears]
    outer = {f"sp{args.ranks}", f"tp{args.ranks}"}
    header = " ".join(name.rjust(12) + ", ms" for name in names)
    print(f"{'tokens':>7} {header} {'two/all':>8} {'spread':>7}")
    for tokens, by_gear in sorted(seconds.items()):
        medians = {name: statistics.median(by_gear[name]) for name in names if by_gear[name]}
        if set(medians) != set(names):
            continue
        spread = max((max(v) - min(v)) / statistics.median(v) for v in by_gear.values())
        gain = min(medians[name] for name in outer) / min(medians.values())
        cells = " ".join(f"{1e3 * medians[name]:>16.1f}" for name in names)
        print(f"{tokens:>7} {cells} {gain:>8.3f} {spread:>6.0%}")


def main() -> None:
    parser = arguments(__doc__, ranks=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--largest",
        type=int,
        default=512,
        help="tokens of the largest step; a larger one leaves time for fewer sizes",
    )
    run(measure, parser.parse_args())


if __name__ == "__main__":
    main()
