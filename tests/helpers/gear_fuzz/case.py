"""What one fuzzed run does, drawn from a seed: a line of text from which the same run can be made again.

Every request and every step draws from a stream of its own, so that leaving one out does not change the others; that is
what makes a failing case shrink.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from helpers.gear_fuzz.tiny import FAMILIES, RANKS, kv_head_choices
from shiftcore.layout import Gear, allowed_gears
from shiftruntime.engine.messages import Sampling

MAX_BUDGET_TOKENS = 40
UNTIL_DONE = 2000  # steps; a case that is not over by then starves a request
_STEMS = 2  # prompts begin with a part of one of so many texts
_TENANTS = ("", "", "a", "b")


@dataclass(frozen=True)
class RequestSpec:
    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    arrival_step: int
    tenant: str = ""
    priority: int = 0
    deadline_steps: int | None = None  # from its arrival
    sibling_of: str = ""  # waits for that request's prompt, which is its own as well


@dataclass(frozen=True)
class StepSpec:
    """One step; numbers in [0, 1) choose among what is there when the step comes."""

    gear: Gear
    budget_tokens: int
    abort_phase: str | None  # "before", "planned" (before the ranks run) or "computed" (before the step ends)
    abort_choice: float
    snapshot: bool
    extra_rows: tuple[float, ...]  # a chunk whose number is small reports all its rows
    overlap: bool  # the next step is scheduled before the ranks run this one


@dataclass(frozen=True)
class Case:
    seed: int
    family: str
    ranks: int
    kv_heads: int
    vocabulary: int
    dtype: str
    block_size: int
    spare_blocks: int  # beyond what the longest request needs
    max_num_seqs: int
    requests: tuple[int, ...]
    gears: tuple[str, ...]
    steps: int = UNTIL_DONE
    prompt: int = 40  # the longest
    output: int = 24
    aborts: bool = True
    extra_rows: bool = True
    late: bool = True  # requests arrive over time
    prefix_cache: bool = True
    pieces: bool = False  # logits are made in pieces: only tokens, scores and caches are seen
    token_by_token: bool = False  # how the one rank computes it
    overlap: bool = True

    @staticmethod
    def draw(seed: int, ranks: int | None = None, family: str | None = None) -> Case:
        rng = stream(seed, "case")
        P = rng.choice(RANKS)
        name = rng.choice(sorted(FAMILIES))
        P, name = ranks or P, family or name
        return Case(
            seed=seed,
            family=name,
            ranks=P,
            kv_heads=rng.choice(kv_head_choices(name, P)),
            vocabulary=rng.choice((64, 67, 131)),
            dtype=rng.choice(("float32", "float64")),
            block_size=rng.choice((1, 2, 2, 3, 4, 5, 8)),
            spare_blocks=rng.choice((0, 0, 0, 1, 2, 5)),
            max_num_seqs=rng.choice((1, 2, 3, 3, 5, 7)),
            requests=tuple(range(rng.randint(3, 8))),
            gears=tuple(gear.name for gear in allowed_gears(Gear(P, 1))),
            prefix_cache=rng.random() < 0.8,
            token_by_token=rng.random() < 0.1,
            pieces=rng.random() < 0.1,
        )

    def __str__(self) -> str:
        def text(value: Any) -> str:
            return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

        return " ".join(f"{f.name}={text(getattr(self, f.name))}" for f in fields(self))

    @staticmethod
    def parse(line: str) -> Case:
        """The inverse of str(); a field that the line leaves out has its default."""
        read: dict[str, Any] = {
            "int": int, "str": str, "bool": lambda text: text == "True",
            "tuple[int, ...]": lambda text: tuple(map(int, text.split(","))),
            "tuple[str, ...]": lambda text: tuple(text.split(",")),
        }  # fmt: skip
        kinds = {f.name: str(f.type) for f in fields(Case)}
        values = dict(item.split("=", 1) for item in line.split())
        return Case(**{name: read[kinds[name]](text) for name, text in values.items()})

    def request(self, number: int) -> RequestSpec:
        rng = stream(self.seed, "request", number)
        arrival = rng.choice((0, 0, rng.randrange(12), rng.randrange(30)))
        spec = RequestSpec(
            f"r{number}",
            self._prompt(rng)[: self.prompt],
            self._sampling(rng),
            arrival if self.late else 0,
            tenant=rng.choice(_TENANTS),
            priority=rng.choice((0, 0, 0, 1, -1)),
            deadline_steps=rng.randint(5, 60) if rng.random() < 0.1 and self.aborts else None,
        )
        if number == 0 or rng.random() > 0.25:
            return spec
        leader = self.request(rng.randrange(number))
        # A sibling often comes while its leader's prompt is being computed.
        arrival = leader.arrival_step + rng.randrange(4) if self.late else 0
        return replace(spec, prompt=leader.prompt, arrival_step=arrival, tenant=leader.tenant, sibling_of=leader.id)

    def _prompt(self, rng: random.Random) -> tuple[int, ...]:
        stem = stream(self.seed, "stem", rng.randrange(_STEMS))
        shared = [stem.randrange(self.vocabulary) for _ in range(rng.choice((0, 0, 4, 8, 16, 24)))]
        tail = rng.choice((1, 2, rng.randint(3, 12), rng.randint(3, 40)))
        return tuple(shared + [rng.randrange(self.vocabulary) for _ in range(tail)])

    def _sampling(self, rng: random.Random) -> Sampling:
        V = self.vocabulary
        limit = min(self.output, rng.choice((1, 3, 8, 14, 24)))
        penalised = rng.random() < 0.3
        return Sampling(
            temperature=rng.choice((0.0, 0.7, 1.0, 2.0)),
            top_p=rng.choice((1.0, 1.0, 0.95, 0.5)),
            seed=rng.randrange(2**63),
            max_tokens=limit,
            stop_token_ids=tuple(rng.sample(range(V), rng.choice((0, 0, 1, 6)))),
            logprobs=rng.random() < 0.3,
            top_logprobs=rng.choice((0, 0, 0, 3)),
            prompt_logprobs=rng.random() < 0.1,
            top_k=rng.choice((0, 0, 5, 20)),
            min_p=rng.choice((0.0, 0.0, 0.02)),
            min_tokens=min(limit, rng.choice((0, 0, 4))),
            repetition_penalty=rng.choice((1.0, 1.3)) if penalised else 1.0,
            presence_penalty=rng.choice((0.0, 0.7)) if penalised else 0.0,
            frequency_penalty=rng.choice((0.0, -0.4)) if penalised else 0.0,
            logit_bias=tuple((token, rng.uniform(-8, 8)) for token in sorted(rng.sample(range(V), 3)))
            if rng.random() < 0.2
            else (),
        )

    def request_specs(self) -> tuple[RequestSpec, ...]:
        return tuple(self.request(number) for number in self.requests)

    def step(self, number: int) -> StepSpec:
        rng = stream(self.seed, "step", number)
        order = [Gear.parse(name) for name in self.gears]
        # Most steps shift: the gear is drawn from a wheel that turns by the step's number.
        turn = number if rng.random() < 0.75 else rng.randrange(len(order))
        aborts = rng.random() < 0.03
        phase = rng.choice(("before", "planned", "computed"))
        return StepSpec(
            gear=order[turn % len(order)],
            budget_tokens=rng.choice((1, 2, 3, 5, 7, 8, 13, 16, 24, MAX_BUDGET_TOKENS)),
            abort_phase=phase if aborts and self.aborts else None,
            abort_choice=rng.random(),
            snapshot=rng.random() < 0.12,
            extra_rows=tuple(rng.random() for _ in range(8)) if self.extra_rows else (),
            overlap=self.overlap and stream(self.seed, "overlap", number).random() < 0.7,
        )

    def smaller(self, failed_step: int | None) -> Iterator[Case]:
        """Cases with less in them, the boldest cuts first."""
        if failed_step is not None and failed_step + 1 < self.steps:
            yield replace(self, steps=failed_step + 1)
        half = len(self.requests) // 2
        if half > 1:
            yield replace(self, requests=self.requests[:half])
            yield replace(self, requests=self.requests[half:])
        if len(self.requests) > 1:
            for number in self.requests:
                yield replace(self, requests=tuple(other for other in self.requests if other != number))
        if len(self.gears) > 1:
            for gear in self.gears:
                yield replace(self, gears=tuple(other for other in self.gears if other != gear))
        for name in ("aborts", "extra_rows", "late", "prefix_cache", "pieces", "token_by_token", "overlap"):
            if getattr(self, name):
                yield replace(self, **dict[str, Any]({name: False}))
        for name, least in (("prompt", 1), ("output", 1)):
            value = getattr(self, name)
            for less in {max(least, value // 2), max(least, value - 1)} - {value}:
                yield replace(self, **{name: less})


def stream(seed: int, *what: object) -> random.Random:
    return random.Random("/".join(map(str, (seed, *what))))
