"""The virtual engine: skipping steps changes nothing, and its clock is that of the runtime's loop."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from helpers.linear_executor import COSTS, SP2, TP2, LinearExecutor
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftcore.policy import Mode, Policy
from shiftsim.engine import Engine, EngineOptions
from shiftsim.generation import Generation
from shiftsim.measures import Measures
from shiftsim.replay import as_json, replay
from shiftsim.trace import Arrival
from shiftsim.work import Work, work_of

OPTIONS = EngineOptions(max_num_seqs=8, max_batched_tokens=256, max_model_len=2048)
ARRIVALS = st.lists(
    st.tuples(st.sampled_from((0.0, 0.0, 0.001, 0.02, 0.3, 5.0)), st.integers(1, 600), st.integers(0, 120)),
    min_size=1, max_size=14,
)  # fmt: skip


def trace(gaps: list[tuple[float, int, int]]) -> list[Arrival]:
    now, found = 0.0, []
    for gap, prompt, output in gaps:
        now += gap
        found.append(Arrival(now, prompt, output))
    return found


@settings(max_examples=150, deadline=None)
@given(
    gaps=ARRIVALS, overlap=st.booleans(), kv_tokens=st.sampled_from((4096, 1200, 768)), engines=st.integers(1, 3),
    policy=st.sampled_from((Policy(), Policy(threshold_tokens=4), Policy(mode=Mode.THROUGHPUT))),
    target=st.sampled_from((None, 0.008)), tokenize=st.sampled_from((0.0, 0.0003)),
    host=st.sampled_from(((0.0, 0.0), (0.001, 0.001), (0.02, 0.003))),
)  # fmt: skip
def test_skipping_steps_changes_no_bit(
    gaps: list[tuple[float, int, int]], overlap: bool, kv_tokens: int, engines: int, policy: Policy,
    target: float | None, tokenize: float, host: tuple[float, float],
) -> None:  # fmt: skip
    executor = LinearExecutor(kv_tokens, tokenize=tokenize, engine=host)
    options = replace(OPTIONS, overlap=overlap, policy=policy, tpot_target_seconds=target)
    skipped, stepped = (
        replay("any", executor, replace(options, skip=skip), engines, trace(gaps)) for skip in (True, False)
    )
    assert json.dumps(as_json(skipped)) == json.dumps(as_json(stepped))
    for name in ("ttft", "tpot", "total", "queued"):
        assert getattr(skipped.measures, name)._values == getattr(stepped.measures, name)._values
    assert [engine.use for engine in skipped.fleet.engines] == [engine.use for engine in stepped.fleet.engines]
    assert skipped.finished + skipped.refused == len(gaps)
    for engine in skipped.fleet.engines:
        engine.scheduler.check_idle()


def alone(prompt: int, output: int, **more: object) -> tuple[Measures, Engine]:
    measures = Measures()
    engine = Engine(LinearExecutor(), replace(OPTIONS, **more), measures)  # type: ignore[arg-type]
    engine.submit(Generation.of(0, 1.0, prompt, output), 1.0)
    engine.advance()
    return measures, engine


@pytest.mark.parametrize("overlap", [True, False])
def test_one_request_takes_the_steps_that_it_needs(overlap: bool) -> None:
    """By hand: two chunks of the prompt in the sequence gear, then decodes in the tp gear."""
    executor = LinearExecutor()
    measures, engine = alone(300, 5, overlap=overlap)
    chunks = [Work(256, 256 * 255 // 2, 0, 0, 0), Work(44, 44 * 256 + 44 * 43 // 2, 0, 0, 1)]
    prompt = executor.seconds(SP2, chunks[0]) + executor.seconds(TP2, chunks[1])
    decodes = sum(executor.seconds(TP2, Work(0, 0, 1, 300 + i, 1)) for i in range(4))
    assert measures.ttft.percentile(50) == pytest.approx(prompt, rel=1e-12)
    assert measures.tpot.percentile(50) == pytest.approx(decodes / 4, rel=1e-12)
    assert measures.total.percentile(50) == pytest.approx(prompt + decodes, rel=1e-12)
    assert (engine.use[SP2].steps, engine.use[TP2].steps) == (1, 5)
    assert (engine.use[SP2].tokens, engine.use[TP2].tokens) == (256, 48)
    assert engine.shifts == 1


def test_planning_ahead_lets_a_newcomer_wait_for_the_step_that_is_planned() -> None:
    """As in the runtime's loop: who comes while step k runs finds step k+1 planned, and begins in step k+2."""
    ttft = {}
    for overlap in (True, False):
        measures = Measures()
        engine = Engine(LinearExecutor(), replace(OPTIONS, overlap=overlap), measures)
        engine.submit(Generation.of(0, 0.0, 1, 100), 0.0)
        engine.advance(0.05)
        engine.submit(Generation.of(1, 0.05, 10, 1), 0.05)
        engine.advance()
        ttft[overlap] = measures.ttft.largest
    fixed, per_token = COSTS[TP2]
    assert ttft[True] - ttft[False] == pytest.approx(fixed + per_token, rel=0.001)


@pytest.mark.parametrize(
    ("host", "later"),
    [
        ((0.002, 0.002), 0.0),  # hidden behind the step before
        ((0.004, 0.002), 0.0),
        ((0.5, 0.002), 0.5),  # the ranks wait for the engine
    ],
)
@pytest.mark.parametrize("skip", [True, False])
def test_planning_ahead_hides_the_engines_time_up_to_the_length_of_a_step(
    host: tuple[float, float], later: float, skip: bool
) -> None:
    """The first step is planned while nothing runs; without planning ahead every step is."""
    for overlap in (True, False):
        measures = Measures()
        executor = LinearExecutor(engine=host)
        engine = Engine(executor, replace(OPTIONS, overlap=overlap, skip=skip), measures)
        engine.submit(Generation.of(0, 0.0, 10, 21), 0.0)
        engine.advance()
        prompt = executor.seconds(TP2, Work(10, 45, 0, 0, 1))
        decodes = [executor.seconds(TP2, Work(0, 0, 1, 10 + i, 1)) for i in range(20)]
        assert measures.ttft.largest == pytest.approx(prompt)
        hidden = [max(seconds - host[1], later) for seconds in decodes]
        assert measures.total.largest == pytest.approx(prompt + sum(hidden if overlap else decodes))


def seen(engine: Engine) -> list[object]:
    """What an autoscaler and a balancer ask for."""
    scheduler = engine.scheduler
    return [
        engine.unfinished, engine.waiting, scheduler.waiting_tokens, [r.num_output for r in scheduler.running],
        scheduler.pool.num_available, {gear: use.tokens for gear, use in engine.use.items() if use.steps},
    ]  # fmt: skip


@pytest.mark.parametrize("overlap", [True, False])
def test_who_looks_while_a_step_runs_sees_none_of_its_tokens(overlap: bool) -> None:
    """A snapshot that already has the step in progress lets the autoscaler see ahead by up to a long prompt."""
    measures = Measures()
    engine = Engine(LinearExecutor(), replace(OPTIONS, overlap=overlap), measures)
    engine.submit(Generation.of(0, 0.0, 200, 3), 0.0)
    step = LinearExecutor().seconds(SP2, Work(200, 200 * 199 // 2, 0, 0, 1))
    engine.advance(step * 0.99)
    assert [r.num_output for r in engine.scheduler.running] == [0]
    assert not engine.use[SP2].tokens
    assert engine.unfinished == 1
    engine.advance(step)
    assert [r.num_output for r in engine.scheduler.running] == [1]
    assert engine.use[SP2].tokens == 200


@settings(max_examples=60, deadline=None)
@given(
    gaps=ARRIVALS, overlap=st.booleans(), kv_tokens=st.sampled_from((4096, 768)),
    looks=st.lists(st.floats(0.0, 8.0), max_size=6),
)  # fmt: skip
def test_skipped_steps_look_like_single_ones_and_looking_changes_nothing(
    gaps: list[tuple[float, int, int]], overlap: bool, kv_tokens: int, looks: list[float]
) -> None:
    arrivals = trace(gaps)

    def played(skip: bool, looking: bool) -> tuple[list[object], list[float]]:
        measures = Measures()
        views: list[object] = []
        engine = Engine(LinearExecutor(kv_tokens), replace(OPTIONS, overlap=overlap, skip=skip), measures)
        moments = [(at, -1) for at in looks if looking] + [(a.seconds, i) for i, a in enumerate(arrivals)]
        for at, number in sorted(moments):
            engine.advance(at)
            if number < 0:
                views.append(seen(engine))
            else:
                arrival = arrivals[number]
                engine.submit(Generation.of(number, at, arrival.prompt_tokens, arrival.output_tokens), at)
        engine.advance()
        return views, [*measures.ttft.values, *measures.total.values]

    skipped, stepped, unseen = played(True, True), played(False, True), played(True, False)
    assert skipped == stepped
    assert skipped[1] == unseen[1]


def test_what_a_chunk_looks_back_at_is_counted() -> None:
    engine = Engine(LinearExecutor(), OPTIONS, Measures())
    engine.submit(Generation.of(0, 0.0, 7, 3), 0.0)
    batch = engine.scheduler.schedule()
    assert work_of(batch) == Work(7, sum(range(7)), 0, 0, 1)
    engine.scheduler.complete({"0": 0})
    assert work_of(engine.scheduler.schedule()) == Work(0, 0, 1, 7, 1)


def test_what_was_computed_before_the_chunks_of_a_step_is_counted_once_for_each() -> None:
    engine = Engine(LinearExecutor(), OPTIONS, Measures())
    engine.submit(Generation.of(0, 0.0, 300, 3), 0.0)
    engine.scheduler.schedule()
    engine.submit(Generation.of(1, 0.0, 20, 3), 0.0)
    engine.scheduler.complete({})
    pairs = 44 * 256 + sum(range(44)) + sum(range(20))
    assert work_of(engine.scheduler.schedule()) == Work(64, pairs, 0, 0, 2, prefill_context=256)


def test_a_request_that_never_fits_is_refused_and_counted() -> None:
    outcome = replay("any", LinearExecutor(kv_tokens=320), OPTIONS, 2, trace([(0, 300, 5), (0, 300, 50), (0, 9, 2)]))
    assert (outcome.finished, outcome.refused) == (2, 1)
    assert "exceed the 320 tokens" in str(outcome.fleet.refusals)


def test_the_balancer_sends_a_request_to_the_least_loaded_engine() -> None:
    outcome = replay("any", LinearExecutor(), OPTIONS, 3, trace([(0, 100, 100)] * 6))
    assert [sum(use.tokens for use in engine.use.values()) for engine in outcome.fleet.engines] == [2 * 199] * 3


def test_who_comes_faster_than_can_be_served_drowns() -> None:
    outcome = replay("any", LinearExecutor(), OPTIONS, 1, trace([(0.001, 256, 100)] * 2000))
    assert not outcome.keeps_up
    assert outcome.fleet.peak_waiting > 1900
    assert outcome.drain_seconds > 100
    calm = replay("any", LinearExecutor(), OPTIONS, 1, trace([(1.0, 256, 50)] * 100))
    assert calm.keeps_up
    assert calm.fleet.peak_waiting <= 1
