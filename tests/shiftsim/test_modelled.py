"""The modelled executor against arithmetic by hand, and what must hold for any constants."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftcore.layout import Gear, LayoutError
from shiftcore.policy import Mode, Policy
from shiftsim import hardware, models
from shiftsim.engine import EngineOptions
from shiftsim.errors import UserError
from shiftsim.executor.fitted import Fitted, Latency, fit
from shiftsim.executor.memory import Engine, weight_bytes
from shiftsim.executor.modelled import ModelledExecutor
from shiftsim.replay import as_json, replay
from shiftsim.trace import Arrival
from shiftsim.work import Work

TP, SP, ONE = Gear(1, 8), Gear(8, 1), Gear(1, 1)
PLAUSIBLE = Fitted(0.5, 0.005, 0.7, 50e-6)
PROMPT = Work(4096, 4096 * 4097 // 2, 0, 0, 1)


def executor(
    base: Gear = SP, model: str = "llama-3.3-70b-fp8", fitted: Fitted = PLAUSIBLE, **engine: object
) -> ModelledExecutor:
    found = models.load(model)
    return ModelledExecutor(found, hardware.parse("8xH200").gpu, Engine(base, **engine), hardware.software(), fitted)  # type: ignore[arg-type]


def test_a_decode_of_one_gpu_reads_weights_and_cache_by_hand() -> None:
    parts = executor(ONE).parts(ONE, Work(0, 0, 1, 1000, 1))
    bandwidth = 4.8e12 * 0.896
    weights = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    assert parts["linear"] == pytest.approx(weights / bandwidth, rel=0.001)
    assert parts["attention of decodes"] == pytest.approx(1000 * 2 * 8 * 128 * 2 * 80 / bandwidth)
    assert parts["head"] == pytest.approx(128256 * 8192 * 2 / bandwidth)
    assert parts["collectives"] == 0
    assert parts["host"] == 0.005


def test_a_prompt_of_one_gpu_is_arithmetic_by_hand() -> None:
    parts = executor(ONE).parts(ONE, PROMPT)
    # 32 tiles of rows times 80 of queries, keys and values are 2,560, in 20 waves of 132; so the others.
    waves_of_depth = ((20, 8192), (16, 8192), (109, 8192), (16, 28672))
    wave_flops = sum(2 * 132 * 128 * 128 * waves * depth for waves, depth in waves_of_depth)
    assert parts["linear"] == pytest.approx(80 * wave_flops / (1979e12 * 0.5))
    assert parts["attention of prompts"] == pytest.approx(4 * 8192 * 80 * 4096 * 4097 / 2 / (989.5e12 * 0.6))


def test_collectives_by_hand() -> None:
    all_reduce = 10.5e-6 + 2 * 7 / 8 * 4096 * 8192 * 2 / (450e9 * 0.7)
    assert executor(TP).parts(TP, PROMPT)["collectives"] == pytest.approx(160 * all_reduce)
    there, back = (50e-6 + 7 / 8 * 512 * width * 2 / (450e9 * 0.82) for width in (8192 + 2048, 8192))
    assert executor(SP).parts(SP, PROMPT)["collectives"] == pytest.approx(80 * (there + back))


def test_gears_of_a_pod_share_the_arithmetic_of_a_prompt() -> None:
    """A gear changes what is read and sent, not what is computed, but for tiles that are not full."""
    pod = executor()
    linear = {gear: pod.parts(gear, PROMPT)["linear"] for gear in pod.engine.gears}
    assert len(linear) == 4
    assert max(linear.values()) == pytest.approx(min(linear.values()), rel=0.03)


@given(
    tokens=st.integers(1, 8192),
    decodes=st.integers(0, 512),
    context=st.integers(0, 1_000_000),
    gear=st.sampled_from([TP, SP, Gear(4, 2), Gear(2, 4)]),
    model=st.sampled_from(["llama-3.3-70b-fp8", "qwen3-30b-a3b-fp8"]),
)
def test_more_work_never_takes_less_and_the_parts_are_the_whole(
    tokens: int, decodes: int, context: int, gear: Gear, model: str
) -> None:
    pod = executor(model=model, base=SP if model.startswith("llama") else Gear(1, 8))
    gear = gear if model.startswith("llama") else TP
    work = Work(tokens, tokens * tokens // 2, decodes, context if decodes else 0, decodes + 1)
    seconds = pod.seconds(gear, work)
    assert seconds == pytest.approx(sum(pod.parts(gear, work).values()))
    for more in (
        replace(work, prefill_tokens=tokens + 1),
        replace(work, prefill_pairs=work.prefill_pairs + 1),
        replace(work, decodes=decodes + 1, sampled=decodes + 2),
        replace(work, decode_context=work.decode_context + 1),
    ):
        assert pod.seconds(gear, more) >= seconds


@given(
    pod=st.sampled_from(
        [
            executor(),
            executor(TP, copies=True),
            executor(ONE, model="llama-3.1-8b-bf16"),
            executor(Gear(2, 4), model="qwen3-32b-fp8"),
            executor(model="qwen3-30b-a3b-fp8"),
        ]
    ),
    number=st.integers(0, 3),
    decodes=st.integers(1, 1024),
    each=st.integers(0, 131_072),
    steps=st.integers(1, 300),
)
def test_a_run_of_decodes_takes_its_steps_to_the_bit(
    pod: ModelledExecutor, number: int, decodes: int, each: int, steps: int
) -> None:
    gear, first = pod.engine.gears[number % len(pod.engine.gears)], decodes * each
    works = (Work(0, 0, decodes, first + i * decodes, decodes) for i in range(steps))
    found = pod.decode_seconds(gear, Work(0, 0, decodes, first, decodes), steps)
    assert list(found) == [pod.seconds(gear, work) for work in works]


@settings(max_examples=20, deadline=None)
@given(
    gaps=st.lists(
        st.tuples(st.sampled_from((0.0, 0.0, 0.01, 0.2, 5.0)), st.integers(1, 3000), st.integers(0, 150)),
        min_size=1, max_size=12,
    ),
    overlap=st.booleans(),
    policy=st.sampled_from((Policy(), Policy(threshold_tokens=512), Policy(mode=Mode.LATENCY))),
    model=st.sampled_from(("llama-3.3-70b-fp8", "qwen3-30b-a3b-fp8")),
)  # fmt: skip
def test_skipping_steps_of_gpus_changes_no_bit(
    gaps: list[tuple[float, int, int]], overlap: bool, policy: Policy, model: str
) -> None:
    now, arrivals = 0.0, []
    for gap, prompt, output in gaps:
        now += gap
        arrivals.append(Arrival(now, prompt, output))
    pod = executor(model=model, max_batched_tokens=2048, max_num_seqs=8)
    options = EngineOptions(8, 2048, 8192, policy=policy, overlap=overlap)
    skipped, stepped = (replay("any", pod, replace(options, skip=skip), 1, arrivals) for skip in (True, False))
    assert json.dumps(as_json(skipped)) == json.dumps(as_json(stepped))
    for name in ("ttft", "tpot", "total", "queued"):
        assert getattr(skipped.measures, name)._values == getattr(stepped.measures, name)._values


def test_gears_cross_and_calibration_finds_it() -> None:
    pod = executor(max_batched_tokens=8192)
    crossover = pod.table.crossover.tokens
    assert crossover is not None
    small, large = Work(1, 1, 0, 0, 1), Work(8192, 8192, 0, 0, 1)
    assert pod.seconds(TP, small) < pod.seconds(SP, small)
    assert pod.seconds(SP, large) < pod.seconds(TP, large)
    assert pod.table.costs[SP].seconds(crossover) < pod.table.costs[TP].seconds(crossover)


def test_the_crossover_of_the_table_is_where_the_gears_cross_and_not_a_power_of_two() -> None:
    """A pod measures between the two sizes that bracket it; so does the table that the simulator's pods have."""
    pod = executor(max_batched_tokens=8192)
    table = pod.table
    assert table.crossover.tokens is not None
    assert table.crossover.tokens.bit_count() > 1
    lower = max(point.tokens for point in table.costs[SP].points if point.tokens < table.crossover.tokens)
    assert table.crossover.tokens - lower <= lower / 16
    costs = {n: [table.costs[gear].seconds(n) for gear in (TP, SP)] for n in (lower, table.crossover.tokens)}
    assert costs[lower][0] <= costs[lower][1]
    assert costs[table.crossover.tokens][1] < costs[table.crossover.tokens][0]


def test_memory_decides_how_much_is_cached() -> None:
    tp, sp = executor(TP).kv_tokens, executor(SP, pinned=SP).kv_tokens
    assert tp > 1.9 * sp, "in the base gear of pure sequence parallelism every GPU has all weights"
    views, copies = executor(SP).kv_tokens, executor(SP, copies=True).kv_tokens
    model = models.load("llama-3.3-70b-fp8")
    second = weight_bytes(model, Engine(SP, copies=True)) - weight_bytes(model, Engine(SP, SP, copies=True))
    assert second == pytest.approx(model.parameters / 8, rel=0.05), "a second copy is one share in eight"
    assert views > copies
    assert executor(SP, max_batched_tokens=131072).kv_tokens < sp, "a larger step needs room for its rows"
    model_in_two_bytes = executor(TP, model="llama-3.3-70b-bf16").kv_tokens
    assert model_in_two_bytes < tp, "weights of two bytes leave less"


def test_a_share_of_what_is_free_is_of_all_memory_less_weights_and_steps() -> None:
    """As spec.engine.gpuMemoryPercent: not of the memory that an engine may use at most."""
    all_of_it = executor(SP, memory_fraction=1.0).kv_tokens
    for percent in (95, 80, 10):
        assert executor(SP, kv_memory_percent=percent).kv_tokens == pytest.approx(all_of_it * percent / 100, abs=1)


def test_a_model_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"no room for its cache: 14\d GB .* 135 GB"):
        _ = executor(ONE, model="llama-3.3-70b-bf16").kv_tokens


def test_a_layout_that_no_pod_could_serve_is_refused() -> None:
    with pytest.raises(LayoutError, match="64 query heads do not divide over 7 ranks"):
        executor(Gear(7, 1))


@pytest.mark.parametrize("truth", [PLAUSIBLE, Fitted(0.3, 0.001, 0.9, 5e-6), Fitted(0.8, 0.02, 0.3, 300e-6)])
def test_the_fit_finds_the_numbers_that_made_the_latencies(truth: Fitted) -> None:
    """Also those that the paper's latencies do not have."""
    pods = {gear: executor(gear) for gear in (TP, SP)}
    decode = Work(0, 0, 1, 4096, 1)

    def latency(gear: Gear, work: Work) -> Latency:
        return lambda fitted: replace(pods[gear], fitted=fitted).seconds(gear, work)

    latencies = {
        "host_seconds": latency(TP, decode),
        "all_to_all_seconds": latency(SP, decode),
        "linear_of_peak": latency(SP, PROMPT),
        "all_reduce_of_link": latency(TP, PROMPT),
    }
    found = fit({name: (of, of(truth)) for name, of in latencies.items()})
    assert list(vars(found).values()) == pytest.approx(list(vars(truth).values()), rel=1e-3)


@pytest.mark.parametrize("gear", [TP, SP])
def test_the_table_says_what_decodes_take_as_a_pod_would_measure_it(gear: Gear) -> None:
    """A pod that plans with the cost of a prompt's context for that of decodes overruns its target."""
    pod = executor()
    for sequences in (1, 8, 256):
        step = Work(0, 0, sequences, sequences * 4096, sequences)
        told = pod.table.costs[gear].seconds(sequences, sequences * (4096 - 64))
        assert told == pytest.approx(pod.seconds(gear, step))


def test_a_kv_head_goes_to_all_who_attend_with_it() -> None:
    """4 kv heads over 8 ranks: each is sent, and projected, twice."""
    pod = executor(model="qwen3-30b-a3b-fp8")
    queries, keys = 32 * 128, 2 * 8 * 128
    there, back = (50e-6 + 7 / 8 * 512 * width * 2 / (450e9 * 0.82) for width in (queries + keys, queries))
    experts = 2 * (50e-6 + 7 / 8 * 512 * 8 * 2048 * 2 / (450e9 * 0.82))
    assert pod.parts(SP, PROMPT)["collectives"] == pytest.approx(48 * (there + back + experts))


def test_what_planning_ahead_can_hide_is_the_engines_own_and_a_part_of_the_hosts() -> None:
    """With one sequence nearly nothing; with very many more than the host is charged for, which the ranks wait for."""
    pod, known = executor(), hardware.software()
    few, many = (pod.engine_seconds(Work(0, 0, n, 0, n)) for n in (1, 1024))
    assert few == (pytest.approx(known.engine_seconds + known.engine_seconds_per_sequence),) * 2
    assert few[1] < 0.02 * pod.fitted.host_seconds
    assert many[0] > many[1] == pod.fitted.host_seconds
