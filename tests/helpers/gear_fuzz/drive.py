"""Runs a case: the real scheduler, the engine's own plans, real ranks; notes all that came out, and judges nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from helpers.gear_fuzz.case import MAX_BUDGET_TOKENS, UNTIL_DONE, Case, RequestSpec, StepSpec
from helpers.gear_fuzz.ranks import CachedHeads, LogitRows, layer_windows
from shiftcore.block_tables import BlockTables
from shiftcore.blocks import BlockPool
from shiftcore.layout import Gear
from shiftcore.scheduler import Batch, Finish, Limits, Request, Scheduler
from shiftruntime.config import ModelConfig
from shiftruntime.engine.messages import Sampling, TopLogprobs
from shiftruntime.engine.plans import may_run_ahead, plan_chunks
from shiftruntime.engine.samples import History, StepResults, step_results
from shiftruntime.worker.messages import ChunkPlan, Done
from torch import Tensor

_EXTRA_ROWS_BELOW = 0.12
_MANY = 1000

PlanChunks = Callable[[Batch, Mapping[str, Sampling], int, Mapping[str, History], Batch], tuple[ChunkPlan, ...]]
Tables = tuple[list[int], ...]  # per layer group


class Ranks(Protocol):
    """What runs a step; processes hide their logits and caches, and then there is less to compare."""

    def run(self, gear: Gear, chunks: Sequence[ChunkPlan]) -> Done: ...

    def logits(self) -> LogitRows | None: ...

    def cached(self, tables: Tables, tokens: int) -> list[CachedHeads]:
        """By rank."""
        ...

    def poison(self, blocks: Sequence[int]) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What a planted bug may replace."""

    scheduler: type[Scheduler] = Scheduler
    plan: PlanChunks = plan_chunks


@dataclass(frozen=True)
class Snapshot:
    """The cache of one request at one moment, by rank."""

    step: int
    tokens: int
    parts: list[CachedHeads]


@dataclass(frozen=True)
class Drawn:
    step: int
    position: int
    token: int
    logprob: float
    likeliest: TopLogprobs


@dataclass
class Journey:
    """All that was computed for one request."""

    spec: RequestSpec
    request: Request
    rows: list[tuple[int, int, Tensor]] = field(default_factory=list)  # step, position, logits
    drawn: list[Drawn] = field(default_factory=list)
    scores: list[tuple[int, int, int, float]] = field(default_factory=list)  # step, position, target, log probability
    prompt_logprobs: list[float] = field(default_factory=list)  # as a client gets them
    snapshots: list[Snapshot] = field(default_factory=list)
    finish: Finish | None = None


@dataclass(frozen=True)
class Planned:
    """A step that the ranks have not run."""

    number: int
    spec: StepSpec
    batch: Batch
    chunks: tuple[ChunkPlan, ...]
    asked: set[Request]  # those whose client wants the scores


@dataclass
class Run:
    journeys: dict[str, Journey] = field(default_factory=dict)
    gears: list[str] = field(default_factory=list)  # of each step that computed something
    sizes: list[int] = field(default_factory=list)  # tokens of each of them
    preemptions: int = 0
    hit_tokens: int = 0  # from the prefix cache
    overlapped: int = 0  # steps that were scheduled before the step before them ran

    @property
    def shifts(self) -> int:
        return sum(a != b for a, b in zip(self.gears, self.gears[1:], strict=False))


class CaseError(AssertionError):
    """Something broke while the case ran."""

    def __init__(self, step: int, text: str) -> None:
        super().__init__(text)
        self.step = step


def num_blocks(case: Case, config: ModelConfig) -> int:
    """Enough for the longest request and a few more, so that several at once preempt each other."""
    longest = max(len(spec.prompt) + spec.sampling.max_tokens for spec in case.request_specs())
    tables = BlockTables(
        BlockPool(1, case.block_size), layer_windows(config), prefix_cache=False, max_chunk_tokens=MAX_BUDGET_TOKENS
    )
    return tables.peak(longest) + case.spare_blocks


class Driver:
    def __init__(self, case: Case, config: ModelConfig, ranks: Ranks, parts: Parts) -> None:
        self._case, self._ranks, self._parts = case, ranks, parts
        limits = Limits(case.max_num_seqs, MAX_BUDGET_TOKENS, _MANY, _MANY, case.prefix_cache)
        self._pool = BlockPool(num_blocks(case, config), case.block_size)
        self._scheduler = parts.scheduler(limits, self._pool, layer_windows(config))
        self._arriving = sorted(case.request_specs(), key=lambda spec: spec.arrival_step)
        self._samplings = {spec.id: spec.sampling for spec in self._arriving}
        self._histories = {spec.id: History(spec.sampling, spec.prompt) for spec in self._arriving}
        self._writers: dict[int, str] = {}  # block -> tenant whose tokens it holds
        self._begun = -1  # the last step that was scheduled, or tried
        self.run = Run()

    def drive(self) -> Run:
        """Until nothing is left to do, or the case's last step."""
        number = 0
        ahead: Planned | None = None
        while number < self._case.steps and (self._arriving or self._alive()):
            try:
                ahead = self._step(number, ahead)
            except (AssertionError, RuntimeError, LookupError, ValueError) as error:
                raise CaseError(number, f"{type(error).__name__}: {error}") from error
            number += 1
        self.run.preemptions = self._scheduler.counts.preemptions
        self.run.hit_tokens = self._scheduler.counts.hit_tokens
        if number == UNTIL_DONE:
            raise CaseError(number, f"{[request.id for request in self._alive()]} never end")
        if not self._alive():
            self._check_all_free(number)
        return self.run

    def _alive(self) -> list[Request]:
        return [*self._scheduler.running, *self._scheduler.waiting]

    def _step(self, number: int, planned: Planned | None) -> Planned | None:
        """Run a step, planned now or before; the next one, if that was planned ahead as the engine does."""
        planned = planned or self._plan(number)
        if planned is None:
            return None
        spec, last = planned.spec, number + 1 >= self._case.steps
        overlaps = spec.overlap and not last and may_run_ahead(planned.batch, self._histories)
        ahead = self._plan(number + 1, planned.batch) if overlaps else None
        self._abort(spec, "planned")
        self._run(planned)
        self.run.overlapped += ahead is not None
        return ahead

    def _plan(self, number: int, before: Batch = ()) -> Planned | None:
        """``before``: the batch in flight."""
        spec, scheduler = self._case.step(number), self._scheduler
        if number > self._begun:  # one that could not be scheduled ahead is tried again
            self._arrive(number)
            self._abort(spec, "before")
        self._begun = number
        batch = scheduler.schedule(float(number), spec.budget_tokens)
        for request in scheduler.take_expired():
            self.run.journeys[request.id].finish = Finish.DEADLINE
        if not batch:
            return None
        chunks = self._parts.plan(batch, self._samplings, self._case.block_size, self._histories, before)
        asked = {chunk.request for chunk, plan in zip(batch, chunks, strict=True) if plan.targets}
        self._check_owners(batch)
        return Planned(number, spec, batch, self._with_extra_rows(chunks, batch, spec), asked)

    def _run(self, step: Planned) -> None:
        held = {chunk.request: tuple(map(list, chunk.request.tables)) for chunk in step.batch}
        self._ranks.poison(list(self._pool._free))  # nobody may read these in this step
        done = self._ranks.run(step.spec.gear, step.chunks)
        results = step_results(step.batch, step.chunks, done)
        self._note(step.number, step.spec.gear, step.batch, results)
        self._abort(step.spec, "computed")
        self._report_scores(step.asked, results)
        outputs = self._scheduler.complete(results.tokens)
        for request, token, finish in outputs:
            self._histories[request.id].accept(token)
            self.run.journeys[request.id].finish = finish
        self._pool.check()
        self._snapshot(step.number, step.spec, held, {request for request, _, finish in outputs if finish})

    def _arrive(self, number: int) -> None:
        while self._arriving and self._arriving[0].arrival_step <= number:
            spec = self._arriving.pop(0)
            request = _request(spec, float(number))
            self._scheduler.add(request)
            self.run.journeys[spec.id] = Journey(spec, request)

    def _abort(self, spec: StepSpec, phase: str) -> None:
        alive = [request for request in self._alive() if self._scheduler.find(request.id) is request]
        if spec.abort_phase == phase and alive:
            request = alive[int(spec.abort_choice * len(alive))]
            self._scheduler.abort(request.id)
            self.run.journeys[request.id].finish = Finish.ABORT

    def _with_extra_rows(self, chunks: tuple[ChunkPlan, ...], batch: Batch, spec: StepSpec) -> tuple[ChunkPlan, ...]:
        """Some chunks report all their rows; where the next token is not known yet, any will do as a target."""
        changed = list(chunks)
        for i, (chunk, draw) in enumerate(zip(batch, spec.extra_rows, strict=False)):
            if draw < _EXTRA_ROWS_BELOW and not chunks[i].targets:
                targets = [*chunk.request.tokens[chunk.start + 1 :], 0][: chunk.length]
                changed[i] = msgspec.structs.replace(chunks[i], targets=tuple(targets))
        return tuple(changed)

    def _check_owners(self, batch: Batch) -> None:
        """A request reads no block that another tenant's request has filled."""
        for chunk in batch:
            request, size = chunk.request, self._case.block_size
            for table in request.tables:
                read = [block for block in table[: -(-chunk.start // size)] if block >= 0]
                foreign = [block for block in read if self._writers.get(block) != request.tenant]
                assert not foreign, f"{request.id} of tenant {request.tenant!r} reads blocks {foreign} of others"
                written = table[chunk.start // size : -(-chunk.end // size)]
                self._writers.update(dict.fromkeys(written, request.tenant))

    def _note(self, step: int, gear: Gear, batch: Batch, results: StepResults) -> None:
        self.run.gears.append(gear.name)
        self.run.sizes.append(sum(chunk.length for chunk in batch))
        journeys = [self.run.journeys[chunk.request.id] for chunk in batch]
        places = [(j, chunk.start + i) for j, chunk in zip(journeys, batch, strict=True) for i in range(chunk.length)]
        recorded = self._ranks.logits()
        if recorded is not None:
            for token, row in zip(recorded.tokens, recorded.logits, strict=True):
                journey, position = places[token]
                if position < len(journey.request.tokens):
                    journey.rows.append((step, position, row))
        for chunk in batch:
            name = chunk.request.id
            # After a token that came too late for its request nothing counts.
            if chunk.samples and chunk.end <= len(chunk.request.tokens):
                drawn = Drawn(step, chunk.end, results.tokens[name], results.logprobs[name], results.likeliest[name])
                self.run.journeys[name].drawn.append(drawn)
        for request, start, scores in results.scores:
            if start >= len(request.tokens):
                continue
            targets = [*request.tokens[start + 1 :], 0]
            self.run.journeys[request.id].scores += [
                (step, start + i, targets[i], value) for i, value in enumerate(scores)
            ]

    def _report_scores(self, asked: set[Request], results: StepResults) -> None:
        """As the engine reports the log probabilities of a prompt, each once."""
        for request, start, scores in results.scores:
            if request in asked and not request.ended:
                told = self._histories[request.id].take_scores(start, scores)
                self.run.journeys[request.id].prompt_logprobs += told

    def _snapshot(self, step: int, spec: StepSpec, held: Mapping[Request, Tables], finished: set[Request]) -> None:
        """Of requests that just ended (their blocks still hold what they held), and now and then of all that run."""
        tables = {request: blocks for request, blocks in held.items() if request in finished}
        if spec.snapshot:
            tables |= {request: request.tables for request in self._scheduler.running}
        for request, blocks in tables.items():
            heads = self._ranks.cached(blocks, request.computed)
            self.run.journeys[request.id].snapshots.append(Snapshot(step, request.computed, heads))

    def _check_all_free(self, number: int) -> None:
        try:
            self._scheduler.check_idle()
        except AssertionError as error:
            raise CaseError(number, f"when all is done: {error}") from error


def _request(spec: RequestSpec, now: float) -> Request:
    """As the engine makes it of a Submit; a step takes a second."""
    return Request(
        spec.id,
        spec.prompt,
        spec.sampling.max_tokens,
        frozenset(spec.sampling.stop_token_ids),
        now,
        deadline=None if spec.deadline_steps is None else now + spec.deadline_steps,
        tenant=spec.tenant,
        priority=spec.priority,
        waits_for=spec.sibling_of,
        skip_cache_read=spec.sampling.prompt_logprobs,
    )
