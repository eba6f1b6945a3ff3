"""Generate over real gRPC: what a client sees of accepted, refused, stopped and broken requests."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import pytest
from shiftprotos.v1 import inference_pb2 as pb
from shiftruntime.engine.client import RequestRefused
from shiftruntime.server.refusal import REASON_METADATA

from .waiting import SECONDS, eventually


def ask(text: str = "hi", **sampling: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text, sampling=pb.SamplingParams(**sampling))


async def collect(call) -> list[pb.GenerateResponse]:
    return [response async for response in call]


def text_of(responses: list[pb.GenerateResponse]) -> str:
    return "".join(response.text for response in responses)


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    return caught.value


async def test_text_streams_and_ends_once(pod):
    responses = await collect(pod.inference.Generate(ask(), timeout=SECONDS))
    assert text_of(responses) == "hello world"
    assert [r.finish_reason for r in responses[:-1]] == [pb.FINISH_REASON_UNSPECIFIED] * (len(responses) - 1)
    last = responses[-1]
    assert last.finish_reason == pb.FINISH_REASON_STOP
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 12)  # 11 bytes and end-of-sequence
    assert not any(response.HasField("usage") for response in responses[:-1])
    assert pod.engine.aborted == []


async def test_token_ids_go_in_and_out(pod):
    request = pb.GenerateRequest(
        request_id="mine", model="fake", tokens=pb.TokenIds(ids=[5, 6, 7]), sampling=pb.SamplingParams(max_tokens=3)
    )
    responses = await collect(pod.inference.Generate(request, timeout=SECONDS))
    assert [i for r in responses for i in r.token_ids] == list(b"hel")
    assert {r.request_id for r in responses} == {"mine"}
    assert responses[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert pod.engine.submitted[0].prompt == (5, 6, 7)


async def test_every_default_is_filled_in(pod):
    await collect(pod.inference.Generate(ask(), timeout=SECONDS))
    await collect(
        pod.inference.Generate(
            ask(temperature=0, top_p=0.5, seed=2**64 - 1, max_tokens=1000, ignore_eos=True, stop_token_ids=[9]),
            timeout=SECONDS,
        )
    )
    first, second = (submit.sampling for submit in pod.engine.submitted)
    assert (first.temperature, first.top_p, first.max_tokens, first.stop_token_ids) == (1.0, 1.0, 62, (0,))
    assert 0 <= first.seed < 2**63
    assert (second.temperature, second.top_p, second.max_tokens, second.stop_token_ids) == (0.0, 0.5, 62, (9,))
    assert second.seed == 2**63 - 1


async def test_logprobs_come_one_per_token(pod):
    responses = await collect(pod.inference.Generate(ask(logprobs=True, max_tokens=4), timeout=SECONDS))
    assert [len(r.logprobs) for r in responses] == [1, 1, 1, 1]


async def test_characters_are_never_split(start_pod):
    pod = await start_pod(lambda engine: setattr(engine, "reply", "a€𝄞b".encode()))
    responses = await collect(pod.inference.Generate(ask(), timeout=SECONDS))
    assert [r.text for r in responses if r.text] == ["a", "€", "𝄞", "b"]


@pytest.mark.parametrize("tokens_per_output", [1, 3, 50])
async def test_stop_string_across_token_borders(start_pod, tokens_per_output):
    pod = await start_pod(lambda engine: setattr(engine, "tokens_per_output", tokens_per_output))
    responses = await collect(pod.inference.Generate(ask(stop=["o wx", "o wo"]), timeout=SECONDS))
    assert text_of(responses) == "hell"
    last = responses[-1]
    assert last.finish_reason == pb.FINISH_REASON_STOP
    assert last.usage.completion_tokens == 8
    assert sum(len(r.token_ids) for r in responses) == 8
    assert len(pod.engine.aborted) == (tokens_per_output < 50)  # the engine need not go on for nobody


async def test_held_text_is_shown_when_no_stop_string_came(pod):
    responses = await collect(pod.inference.Generate(ask(stop=["world!"]), timeout=SECONDS))
    assert text_of(responses) == "hello world"
    assert responses[-1].text == "world"


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (pb.GenerateRequest(), "INVALID_ARGUMENT", ["no prompt"]),
        (ask(""), "INVALID_ARGUMENT", ["0 tokens"]),
        (ask("x" * 64), "INVALID_ARGUMENT", ["64 tokens", "at most 63"]),
        (ask("x" * 5000), "INVALID_ARGUMENT", ["5000 tokens", "at most 63"]),
        (pb.GenerateRequest(tokens=pb.TokenIds()), "INVALID_ARGUMENT", ["0 tokens"]),
        (pb.GenerateRequest(tokens=pb.TokenIds(ids=[1, 300])), "INVALID_ARGUMENT", ["300", "position 1", "0..299"]),
        (pb.GenerateRequest(tokens=pb.TokenIds(ids=[2**32 - 1])), "INVALID_ARGUMENT", ["4294967295", "0..299"]),
        (ask(temperature=math.nan), "INVALID_ARGUMENT", ["temperature nan", "0..100"]),
        (ask(temperature=math.inf), "INVALID_ARGUMENT", ["temperature inf", "0..100"]),
        (ask(temperature=-0.5), "INVALID_ARGUMENT", ["temperature -0.5", "0..100"]),
        (ask(top_p=0.0), "INVALID_ARGUMENT", ["top_p 0.0", "(0, 1]"]),
        (ask(top_p=1.5), "INVALID_ARGUMENT", ["top_p 1.5", "(0, 1]"]),
        (ask(top_p=math.nan), "INVALID_ARGUMENT", ["top_p nan", "(0, 1]"]),
        (ask(max_tokens=0), "INVALID_ARGUMENT", ["max_tokens 0", "below 1"]),
        (ask(stop=["x"] * 17), "INVALID_ARGUMENT", ["17 stop strings", "at most 16"]),
        (ask(stop=[""]), "INVALID_ARGUMENT", ["0 characters", "1 to 256"]),
        (ask(stop=["y" * 257]), "INVALID_ARGUMENT", ["257 characters", "1 to 256"]),
        (ask(stop_token_ids=[300]), "INVALID_ARGUMENT", ["stop token id 300", "0..299"]),
        (ask(stop_token_ids=[1] * 65), "INVALID_ARGUMENT", ["65 stop token ids", "at most 64"]),
        (pb.GenerateRequest(request_id="r" * 129, text="x"), "INVALID_ARGUMENT", ["129 characters", "at most 128"]),
        (pb.GenerateRequest(request_id="a\nb", text="x"), "INVALID_ARGUMENT", ["'a\\nb'", "printed"]),
        (pb.GenerateRequest(model="other", text="x"), "NOT_FOUND", ["'other'", "'fake'"]),
    ],
)
async def test_a_wrong_request_is_told_value_and_limit_and_harms_nobody(pod, request_, code, words):
    pod.engine.flow.clear()
    neighbour = pod.inference.Generate(ask(), timeout=SECONDS)
    await neighbour.initial_metadata()
    error = await refused(pod.inference.Generate(request_, timeout=SECONDS))
    pod.engine.flow.set()
    assert error.code() is grpc.StatusCode[code]
    assert [word for word in words if word not in error.details()] == []
    assert dict(error.trailing_metadata())[REASON_METADATA].isalpha()
    assert text_of(await collect(neighbour)) == "hello world"
    assert len(pod.engine.submitted) == 1


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("QueueFull", "RESOURCE_EXHAUSTED"),
        ("Draining", "UNAVAILABLE"),
        ("DuplicateRequest", "ALREADY_EXISTS"),
        ("InvalidRequest", "INVALID_ARGUMENT"),
    ],
)
async def test_what_the_engine_refuses_has_a_status(pod, reason, code):
    pod.engine.refusal = RequestRefused(reason, "256 requests wait, the limit is 256")
    error = await refused(pod.inference.Generate(ask(), timeout=SECONDS))
    assert (error.code(), error.details()) == (grpc.StatusCode[code], "256 requests wait, the limit is 256")
    assert dict(error.trailing_metadata())[REASON_METADATA] == reason
    assert pod.engine.aborted == []


async def test_an_id_in_flight_is_refused_and_the_first_goes_on(pod):
    pod.engine.flow.clear()
    request = pb.GenerateRequest(request_id="same", text="x")
    first = pod.inference.Generate(request, timeout=SECONDS)
    await first.initial_metadata()
    error = await refused(pod.inference.Generate(request, timeout=SECONDS))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "'same'" in error.details()
    pod.engine.flow.set()
    assert text_of(await collect(first)) == "hello world"
    assert pod.engine.aborted == []
    assert text_of(await collect(pod.inference.Generate(request, timeout=SECONDS))) == "hello world"


async def test_metadata_comes_at_admission(pod):
    """A client knows that it was accepted before the first token."""
    pod.engine.flow.clear()
    call = pod.inference.Generate(ask(), timeout=SECONDS)
    await asyncio.wait_for(call.initial_metadata(), SECONDS)
    assert len(pod.engine.running) == 1
    pod.engine.flow.set()
    await collect(call)


async def test_a_cancelled_stream_is_aborted(pod):
    pod.engine.flow.clear()
    call = pod.inference.Generate(pb.GenerateRequest(request_id="gone", text="x"), timeout=SECONDS)
    await call.initial_metadata()
    call.cancel()
    await eventually(lambda: pod.engine.aborted == ["gone"])
    status, metrics = await pod.http("/metrics")
    assert status == 200
    assert 'shift_requests_total{outcome="cancelled"} 1.0' in metrics


async def test_a_passed_deadline_aborts(pod):
    pod.engine.flow.clear()
    error = await refused(pod.inference.Generate(pb.GenerateRequest(request_id="late", text="x"), timeout=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: pod.engine.aborted == ["late"])


async def test_abort_ends_the_stream_and_is_idempotent(pod):
    pod.engine.flow.clear()
    call = pod.inference.Generate(pb.GenerateRequest(request_id="a", text="x"), timeout=SECONDS)
    await call.initial_metadata()
    for request_id in ("a", "a", "never seen"):
        await pod.inference.Abort(pb.AbortRequest(request_id=request_id), timeout=SECONDS)
    responses = await collect(call)
    assert responses[-1].finish_reason == pb.FINISH_REASON_ABORT
    assert responses[-1].usage.prompt_tokens == 1


async def test_model_info_and_loads(pod):
    info = await pod.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=SECONDS)
    assert (info.served_name, info.architecture, info.max_model_len, info.vocab_size) == ("fake", "fake", 64, 300)
    assert (info.dtype, info.ranks, list(info.gears)) == ("float32", 2, ["tp2", "sp2"])
    loads = await pod.inference.GetLoads(pb.GetLoadsRequest(), timeout=SECONDS)
    assert (loads.load.kv_blocks_total, loads.load.tpot_p95_seconds) == (100, 0.02)
    percents = (50, 90, 99)
    assert [getattr(loads.load, f"ttft_p{percent}_seconds") for percent in percents] == [0.05, 0.09, 0.11]
    assert [getattr(loads.load, f"tpot_p{percent}_seconds") for percent in percents] == [0.01, 0.015, 0.03]


async def test_the_choices_of_a_request_come_in_one_stream(pod):
    responses = await collect(pod.inference.Generate(ask(n=2, max_tokens=3), timeout=SECONDS))
    assert {r.index: text_of([s for s in responses if s.index == r.index]) for r in responses} == {0: "hel", 1: "hel"}
    assert sorted(r.index for r in responses if r.finish_reason == pb.FINISH_REASON_LENGTH) == [0, 1]


async def test_what_a_request_says_reaches_the_engine(pod):
    request = pb.GenerateRequest(
        text="hi", tenant="t", priority=-3, sampling=pb.SamplingParams(top_k=5, regex="a+", logit_bias={7: 1.5})
    )
    await collect(pod.inference.Generate(request, timeout=SECONDS))
    submit = pod.engine.submitted[0]
    assert (submit.tenant, submit.priority, submit.sampling.top_k) == ("t", -3, 5)
    assert (submit.sampling.grammar.text, submit.sampling.logit_bias) == ("a+", ((7, 1.5),))
    # The call's own deadline, and not the default of an hour; it travels by a clock that may be set meanwhile.
    assert 0 < submit.timeout_seconds <= SECONDS + 1


async def test_a_request_without_deadline_gets_the_longest_one(pod):
    async with asyncio.timeout(SECONDS):
        await collect(pod.inference.Generate(ask()))
    assert 3590 < pod.engine.submitted[0].timeout_seconds <= 3600


async def test_timeout_seconds_end_the_stream_with_a_reason(pod):
    pod.engine.flow.clear()
    error = await refused(
        pod.inference.Generate(pb.GenerateRequest(request_id="late", text="x", timeout_seconds=0.1), timeout=SECONDS)
    )
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "deadline passed, 0.1" in error.details()
    assert dict(error.trailing_metadata())[REASON_METADATA] == "DeadlineExceeded"
    assert pod.engine.aborted == ["late"]
    assert 'shift_requests_total{outcome="deadline"} 1.0' in (await pod.http("/metrics"))[1]


async def test_trailers_tell_how_it_went(pod):
    call = pod.inference.Generate(ask(), timeout=SECONDS)
    responses = await collect(call)
    trailing = dict(await call.trailing_metadata())
    assert trailing["shift-gear-share"] == "sp2=0.75,tp2=0.25"
    assert (trailing["shift-queue-ms"], trailing["shift-cached-tokens"]) == ("250.0", "16")
    assert 0 < float(trailing["shift-ttft-ms"]) < 1000 * SECONDS
    assert responses[-1].usage.cached_tokens == 16
    assert dict(responses[-1].journey.gear_tokens) == {"tp2": 3, "sp2": 9}


async def test_usage_and_trailers_come_also_after_a_stop_string(pod):
    call = pod.inference.Generate(ask(stop=["wo"]), timeout=SECONDS)
    responses = await collect(call)
    assert (responses[-1].finish_reason, responses[-1].usage.cached_tokens) == (pb.FINISH_REASON_STOP, 16)
    assert "shift-gear-share" in dict(await call.trailing_metadata())


async def test_a_trace_context_goes_back_and_into_the_log(start_pod, caplog):
    caplog.set_level("INFO")
    pod = await start_pod(log_requests=True)
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    call = pod.inference.Generate(ask(), timeout=SECONDS, metadata=(("traceparent", traceparent),))
    assert dict(await call.initial_metadata())["traceparent"] == traceparent
    await collect(call)
    await eventually(lambda: any("4bf92f3577b34da6a3ce929d0e0e4736" in line for line in caplog.messages))
    call = pod.inference.Generate(ask(), timeout=SECONDS, metadata=(("traceparent", "nonsense"),))
    assert "traceparent" not in dict(await call.initial_metadata())
    assert text_of(await collect(call)) == "hello world"


async def test_refusals_are_timed_by_outcome(pod):
    await refused(pod.inference.Generate(ask(top_p=0.0), timeout=SECONDS))
    pod.engine.refusal = RequestRefused("QueueFull", "256 requests wait, the limit is 256")
    await refused(pod.inference.Generate(ask(), timeout=SECONDS))
    metrics = (await pod.http("/metrics"))[1]
    for outcome in ("invalid", "rejected"):
        assert f'shift_refusal_seconds_count{{outcome="{outcome}"}} 1.0' in metrics


async def test_tokenize_and_detokenize(pod):
    answer = await pod.inference.Tokenize(pb.TokenizeRequest(text="hé"), timeout=SECONDS)
    assert (list(answer.token_ids), b"".join(answer.pieces)) == (list("hé".encode()), "hé".encode())
    long = await pod.inference.Tokenize(pb.TokenizeRequest(model="fake", text="x" * 5000), timeout=SECONDS)
    assert len(long.token_ids) == 5000
    many = await pod.inference.Detokenize(pb.DetokenizeRequest(token_ids=[120] * 5000), timeout=SECONDS)
    assert many.text == "x" * 5000
    text = await pod.inference.Detokenize(pb.DetokenizeRequest(token_ids=answer.token_ids), timeout=SECONDS)
    assert text.text == "hé"


@pytest.mark.parametrize(
    ("rpc", "request_", "code", "words"),
    [
        ("Tokenize", pb.TokenizeRequest(model="other", text="x"), "NOT_FOUND", "'other'"),
        ("Detokenize", pb.DetokenizeRequest(model="other"), "NOT_FOUND", "'other'"),
        ("Detokenize", pb.DetokenizeRequest(token_ids=[1, 300]), "INVALID_ARGUMENT", "300 at position 1"),
    ],
)
async def test_wrong_tokens_are_refused(pod, rpc, request_, code, words):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(pod.inference, rpc)(request_, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode[code]
    assert words in caught.value.details()


async def test_model_info_tells_defaults_and_what_is_not_there(pod):
    info = await pod.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=SECONDS)
    assert (info.max_prompt_tokens, list(info.eos_token_ids), info.default_sampling.temperature) == (63, [0], 1.0)
    assert list(info.unsupported_features) == ["embeddings", "lora", "speculation", "vision"]
