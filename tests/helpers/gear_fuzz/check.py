"""A case against one rank alone: every logit, token, score and cached head must have the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from helpers.gear_fuzz import tiny
from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.drive import CaseError, Driver, Journey, Parts, Run, num_blocks
from helpers.gear_fuzz.oracle import Expectation, expect
from helpers.gear_fuzz.ranks import AlterDecoder, WrapComm, logical_ranks, logits_at_once
from helpers.gear_fuzz.tiny import LoadedWeights
from shiftcore.layout import Gear, HeadLayout
from shiftcore.scheduler import Finish
from shiftruntime.worker import rank as worker_rank


@dataclass(frozen=True)
class Wiring:
    """The product as it is; a planted bug is a wiring with one part replaced."""

    parts: Parts = field(default_factory=Parts)
    wrap_comm: WrapComm = lambda comm: comm
    alter_decoder: AlterDecoder = lambda decoder: None


PRODUCT = Wiring()
_PIECE = 20  # logits; less than two rows of most shards


@dataclass(frozen=True)
class Failure:
    """The first difference, or what broke."""

    case: Case
    step: int
    text: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.text}\n  {self.case}"


@dataclass
class Tally:
    """What was compared."""

    cases: int = 0
    steps: int = 0
    shifts: int = 0
    padded_steps: int = 0
    preemptions: int = 0
    hit_tokens: int = 0  # prompt tokens from the prefix cache
    overlapped: int = 0  # steps that were scheduled before the step before them ran
    requests: int = 0
    aborted: int = 0
    logit_rows: int = 0
    tokens: int = 0
    scores: int = 0
    kv_entries: int = 0  # heads at a position of a layer, keys and values apart

    def __iadd__(self, other: Tally) -> Tally:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


def check(case: Case, wiring: Wiring = PRODUCT) -> Tally | Failure:
    """Run the case on logical ranks and compare."""
    weights = tiny.load(case.family, case.ranks, case.kv_heads, case.vocabulary, case.dtype, case.ranks)
    blocks = num_blocks(case, weights.config)
    with logical_ranks(weights, case.ranks, case.block_size, blocks, wiring.wrap_comm, wiring.alter_decoder) as ranks:
        try:
            with logits_at_once(_PIECE if case.pieces else worker_rank.LOGITS_AT_ONCE):
                run = Driver(case, weights.config, ranks, wiring.parts).drive()
        except CaseError as error:
            return Failure(case, error.step, str(error))
    alone = tiny.load(case.family, case.ranks, case.kv_heads, case.vocabulary, case.dtype, 1)
    return compare(case, run, alone)


def compare(case: Case, run: Run, alone: LoadedWeights) -> Tally | Failure:
    """``alone``: the weights as one rank maps them."""
    tally = Tally(cases=1, steps=len(run.gears), shifts=run.shifts)
    tally.preemptions, tally.hit_tokens, tally.overlapped = run.preemptions, run.hit_tokens, run.overlapped
    tally.padded_steps = sum(
        size % Gear.parse(gear).sequence != 0 for size, gear in zip(run.sizes, run.gears, strict=True)
    )
    heads = alone.config.heads(case.ranks)
    differences: list[tuple[int, str]] = []
    for journey in run.journeys.values():
        expected = expect(alone, journey.spec, list(journey.request.tokens[:]), case.token_by_token)
        differences += [(step, f"{journey.spec.id} {text}") for step, text in _differences(journey, expected, heads)]
        _count(tally, journey)
    if differences:
        step, text = min(differences)
        return Failure(case, step, f"{text} ({len(differences)} differences)")
    return tally


def _differences(journey: Journey, expected: Expectation, heads: HeadLayout) -> Iterator[tuple[int, str]]:
    for step, position, row in journey.rows:
        if not torch.equal(row, expected.logits[position]):
            worst = float((row - expected.logits[position]).abs().max())
            yield step, f"has other logits at position {position}, by up to {worst:.3g}"
    for drawn in journey.drawn:
        token, logprob, likeliest = expected.drawn[drawn.position]
        if drawn.token != token or not _same(drawn.logprob, logprob) or drawn.likeliest != likeliest:
            got = f"{drawn.token} ({drawn.logprob:.17g})"
            yield drawn.step, f"got {got} at position {drawn.position}, one rank {token} ({logprob:.17g})"
    for step, position, target, logprob in journey.scores:
        if logprob != expected.score(position, target):
            yield (
                step,
                f"scores {target} after position {position} with {logprob}, not {expected.score(position, target)}",
            )
    for snapshot in journey.snapshots:
        for rank, part in enumerate(snapshot.parts):
            owned = heads.kv_range(rank)
            for layer, (mine, whole) in enumerate(zip(part.layers, expected.heads.layers, strict=True)):
                positions = mine[0]
                for name, held, right in zip("kv", mine[1:], whole[1:], strict=True):
                    if not torch.equal(held, right[positions, owned.start : owned.stop]):
                        yield snapshot.step, f"has other {name} in layer {layer} of rank {rank}"
    told = [expected.score(i, token) for i, token in enumerate(journey.spec.prompt[1:])]
    complete = journey.spec.sampling.prompt_logprobs and journey.finish in (Finish.STOP, Finish.LENGTH)
    if journey.prompt_logprobs != told[: None if complete else len(journey.prompt_logprobs)]:
        yield 0, f"was told {len(journey.prompt_logprobs)} of {len(told)} prompt log probabilities, or others"
    yield from ((0, text) for text in _wrong_end(journey))


def _same(a: float, b: float) -> bool:
    """One that nobody wanted is not a number."""
    return a == b or (math.isnan(a) and math.isnan(b))


def _wrong_end(journey: Journey) -> Iterator[str]:
    """The tokens are those drawn, and the end is where stop tokens and the limit say."""
    sampling, request = journey.spec.sampling, journey.request
    output = request.tokens[len(journey.spec.prompt) :]
    drawn = {draw.position: draw.token for draw in journey.drawn}
    if output != [drawn[len(journey.spec.prompt) + i] for i in range(len(output))]:
        yield f"has output {output}, drawn were {drawn}"
    stops = [i for i, token in enumerate(output) if token in sampling.stop_token_ids]
    ended = bool(stops) or len(output) >= sampling.max_tokens
    expected = (Finish.STOP if stops else Finish.LENGTH) if ended else None
    if stops[:1] not in ([], [len(output) - 1]) or len(output) > sampling.max_tokens:
        yield f"went on after its end: {output}"
    if journey.finish not in (expected, Finish.ABORT, Finish.DEADLINE):
        yield f"ended with {journey.finish}, not {expected}: {output}"


def _count(tally: Tally, journey: Journey) -> None:
    tally.requests += 1
    tally.aborted += journey.finish in (Finish.ABORT, Finish.DEADLINE)
    tally.logit_rows += len(journey.rows)
    tally.tokens += len(journey.drawn)
    tally.scores += len(journey.scores)
    for snapshot in journey.snapshots:
        # [positions, kv heads of rank, head_dim], keys and values
        tally.kv_entries += sum(2 * k[:, :, 0].numel() for part in snapshot.parts for _, k, _ in part.layers)
