"""Runs the long campaigns, or one case of a fuzz again, and prints what was injected and what went wrong.

    make campaign                                   all, each with its full count
    python tests/campaign.py gear-fuzz --seed 7     one, from a given seed (or SHIFT_FUZZ_SEED)
    python tests/campaign.py --scale 0.1            a tenth of each count
    python tests/campaign.py --replay 'seed=7 …'    one case of the gear fuzz, as a failure prints it
    python tests/campaign.py --replay 'workload=…'  one plan of the API faults

A campaign is a function (seed, scale) -> Outcome with a line in CAMPAIGNS.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # helpers, as pytest finds them

# name -> module:function; imported when it runs, so that one campaign does not need what another needs
CAMPAIGNS = {
    "gear-fuzz": "helpers.gear_fuzz.campaigns:gear_fuzz",
    "planted-bugs": "helpers.gear_fuzz.campaigns:planted_bugs",
    "rank-processes": "helpers.gear_fuzz.campaigns:rank_processes",
    "scheduler-model": "helpers.scheduler_campaign:scheduler_model",
    "plain-drift": "helpers.gear_fuzz.campaigns:plain_drift",
    "struck-ranks": "helpers.failures.campaigns:strikes",
    "cancelled-streams": "helpers.failures.campaigns:cancelled_streams",
    "small-pools": "helpers.failures.campaigns:small_pools",
    "never-fits": "helpers.failures.campaigns:never_fits",
    "drained-pods": "helpers.failures.campaigns:drained_pods",
    "overloaded-pod": "helpers.failures.campaigns:overloaded_pod",
    "flipped-bits": "helpers.failures.campaigns:flipped_bits",
    "slow-step": "helpers.failures.campaigns:slow_step",
    "api-faults": "helpers.api_faults.campaigns:api_faults",
    "planted-operator-bugs": "helpers.api_faults.campaigns:planted_operator_bugs",
    "fuzzed-bytes": "helpers.failures.campaigns:fuzzed_bytes",
    "spec-properties": "helpers.spec_properties.campaigns:spec_properties",
    "operator-scale": "helpers.operator_scale.campaigns:operator_scale",
    "at-rest": "helpers.at_rest_campaign:at_rest",
    "simulator": "helpers.sim_against_runtime:simulator",
    "simulator-paper": "helpers.sim_against_paper:simulator_paper",
}


@dataclass(frozen=True)
class Row:
    name: str
    seed: int
    injected: str
    bad: int
    seconds: float


def main() -> int:
    args = _parse()
    if args.replay:
        return _replay(args.replay)
    from helpers.campaign_outcome import chosen_seed
    from helpers.failures.processes import patience

    patience()  # before the campaigns are the load
    seed = args.seed if args.seed is not None else chosen_seed()
    print(f"seed {seed}; the same again: SHIFT_FUZZ_SEED={seed}", flush=True)
    rows = [_run(name, seed, args.scale) for name in args.names or CAMPAIGNS]
    print(f"\n{'campaign':<20} | {'seed':>10} | {'injected':>24} | {'bad':>4} | {'seconds':>7}")
    for row in rows:
        print(f"{row.name:<20} | {row.seed:>10} | {row.injected:>24} | {row.bad:>4} | {row.seconds:>7.0f}")
    return 1 if any(row.bad for row in rows) else 0


def _run(name: str, seed: int, scale: float) -> Row:
    print(f"\n=== {name} ===", flush=True)
    module, _, function = CAMPAIGNS[name].partition(":")
    started = time.monotonic()
    outcome = getattr(importlib.import_module(module), function)(seed, scale)
    for line in outcome.notes:
        print(line, flush=True)
    return Row(name, seed, f"{outcome.injected} {outcome.unit}", outcome.bad, time.monotonic() - started)


def _replay(line: str) -> int:
    if line.startswith("workload="):
        from helpers.api_faults.campaigns import replay

        result = replay(line)
        print(f"{result.log}\n{result}")
        return 1 if result.wrong else 0
    from helpers.gear_fuzz.case import Case
    from helpers.gear_fuzz.check import check

    outcome = check(Case.parse(line))
    print(outcome)
    return 0 if hasattr(outcome, "cases") else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="campaign", help=", ".join(CAMPAIGNS))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full count (default 1)")
    parser.add_argument("--replay", metavar="CASE")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in CAMPAIGNS]
    if unknown:
        parser.error(f"no campaign {', '.join(unknown)}; there are {', '.join(CAMPAIGNS)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
