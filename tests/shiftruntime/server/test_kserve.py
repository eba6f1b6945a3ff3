"""Open Inference Protocol v2 over real gRPC, with its own messages; tritonclient has a test of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftprotos.kserve import open_inference_pb2 as pb
from shiftprotos.kserve import open_inference_pb2_grpc
from shiftruntime.engine.messages import Grammar
from shiftruntime.server.kserve_parameters import read_request
from shiftruntime.server.refusal import REASON_METADATA, Refusal
from shiftruntime.server.request import Generation, Options

SECONDS = 10.0


def request(text: str | None = "hi", model: str = "fake", **parameters) -> pb.ModelInferRequest:
    """Parameters travel as request parameters."""
    message = pb.ModelInferRequest(model_name=model, id="q")
    if text is not None:
        add(message, "text_input", "BYTES", text.encode())
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in parameters.items():
        setattr(message.parameters[name], kinds[type(value)], value)
    return message


def add(message: pb.ModelInferRequest, name: str, datatype: str, *values) -> None:
    fields = {
        "BYTES": "bytes_contents", "BOOL": "bool_contents", "INT32": "int_contents", "INT64": "int64_contents",
        "FP32": "fp32_contents", "UINT8": "uint_contents",
    }  # fmt: skip
    tensor = message.inputs.add(name=name, datatype=datatype, shape=[len(values)])
    getattr(tensor.contents, fields[datatype]).extend(values)


def with_json(parameters: object) -> pb.ModelInferRequest:
    message = request()
    add(message, "sampling_parameters", "BYTES", json.dumps(parameters).encode())
    return message


def asked(message: pb.ModelInferRequest) -> Generation:
    return read_request(message, None, None)[0]


def outputs(response: pb.ModelInferResponse) -> dict[str, list]:
    found = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            values, at = [], 0
            while at < len(raw):
                (size,) = struct.unpack_from("<I", raw, at)
                values.append(raw[at + 4 : at + 4 + size].decode())
                at += 4 + size
        else:
            code = {"INT32": "i", "UINT32": "I"}[tensor.datatype]
            values = list(struct.unpack(f"<{len(raw) // 4}{code}", raw))
        assert list(tensor.shape) == [len(values)]
        found[tensor.name] = values
    return found


@pytest.fixture
def stub(pod):
    return open_inference_pb2_grpc.GRPCInferenceServiceStub(pod.channel)


async def stream(stub, *messages: pb.ModelInferRequest) -> list[pb.ModelStreamInferResponse]:
    call = stub.ModelStreamInfer(iter(messages), timeout=SECONDS)
    return [response async for response in call]


async def test_the_whole_completion_comes_in_one_answer(stub, pod):
    response = await stub.ModelInfer(request(max_tokens=5), timeout=SECONDS)
    assert outputs(response) == {
        "text_output": ["hello"], "finish_reason": ["length"], "choice_index": [0], "num_input_tokens": [2],
        "num_output_tokens": [5],
    }  # fmt: skip
    assert (response.model_name, response.model_version, response.id) == ("fake", "1", "q")
    assert response.parameters["triton_final_response"].bool_param
    assert pod.engine.submitted[0].request_id != "q"  # two clients may choose the same id


async def test_several_choices_are_elements_of_the_output(stub):
    found = outputs(await stub.ModelInfer(request(n=3, stop="o"), timeout=SECONDS))
    assert (found["text_output"], found["choice_index"]) == (["hell"] * 3, [0, 1, 2])
    assert found["finish_reason"] == ["stop"] * 3


async def test_only_the_outputs_asked_for_come(stub):
    message = request()
    message.outputs.add(name="text_output")
    assert outputs(await stub.ModelInfer(message, timeout=SECONDS)) == {"text_output": ["hello world"]}


async def test_token_ids_may_be_the_prompt(stub, pod):
    message = request(text=None, max_tokens=2)
    tensor = message.inputs.add(name="input_ids", datatype="INT64", shape=[1, 3])
    tensor.contents.int64_contents.extend([5, 6, 7])
    await stub.ModelInfer(message, timeout=SECONDS)
    assert pod.engine.submitted[0].prompt == (5, 6, 7)


async def test_raw_contents_are_read(stub, pod):
    message = pb.ModelInferRequest(model_name="fake")
    message.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    message.inputs.add(name="temperature", datatype="FP32", shape=[1])
    message.raw_input_contents.extend([struct.pack("<I", 3) + "hé".encode(), struct.pack("<f", 0.5)])
    await stub.ModelInfer(message, timeout=SECONDS)
    assert pod.engine.submitted[0].prompt == tuple("hé".encode())
    assert pod.engine.submitted[0].sampling.temperature == 0.5


async def test_the_prompt_is_part_of_the_output_when_asked_for(stub):
    found = outputs(await stub.ModelInfer(request(exclude_input_in_output=False, max_tokens=2), timeout=SECONDS))
    assert found["text_output"] == ["hihe"]


async def test_trailers_come_as_on_the_native_route(stub):
    call = stub.ModelInfer(request(), timeout=SECONDS)
    await call
    assert dict(await call.trailing_metadata())["shift-gear-share"] == "sp2=0.75,tp2=0.25"


async def test_a_stream_tells_how_each_request_went_and_ends_with_trailers(stub):
    call = stub.ModelStreamInfer(iter([request(), request(stream=True, n=2)]), timeout=SECONDS)
    final = [r.infer_response async for r in call if r.infer_response.parameters["triton_final_response"].bool_param]
    for response in final:
        assert response.parameters["shift-gear-share"].string_param == "sp2=0.75,tp2=0.25"
        assert response.parameters["shift-queue-ms"].string_param == "250.0"
        assert float(response.parameters["shift-ttft-ms"].string_param) >= 0
    assert len(final) == 2
    trailers = dict(await call.trailing_metadata())
    assert (trailers["shift-gear-share"], trailers["shift-queue-ms"]) == ("sp2=0.75,tp2=0.25", "250.0")
    assert float(trailers["shift-ttft-ms"]) >= 0


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
async def test_a_trace_context_goes_back(stub, pod, method):
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    one = request() if method == "ModelInfer" else iter([request()])
    call = getattr(stub, method)(one, timeout=SECONDS, metadata=(("traceparent", trace),))
    assert dict(await call.initial_metadata())["traceparent"] == trace


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (request(model="other"), "NOT_FOUND", ["'other'", "'fake'"]),
        (request(text=None), "INVALID_ARGUMENT", ["no prompt"]),
        (request(stream=True), "INVALID_ARGUMENT", ["ModelStreamInfer"]),
        (request(temperature=-1.0), "INVALID_ARGUMENT", ["temperature -1.0", "0..100"]),
        (request(temprature=1.0), "INVALID_ARGUMENT", ["'temprature' is unknown", "temperature, top_p"]),
        (request(lora_name="x"), "UNIMPLEMENTED", ["lora_name", "LoRA"]),
        (request(max_tokens="many"), "INVALID_ARGUMENT", ["'max_tokens' is 'many'", "whole number"]),
        (with_json([1]), "INVALID_ARGUMENT", ["no JSON object"]),
        (with_json({"json_schema": "half a pair: \ud800"}), "INVALID_ARGUMENT", ["is no JSON"]),
        (request(regex="a", json_object=True), "INVALID_ARGUMENT", ["exclude each other"]),
    ],
)
async def test_a_wrong_request_is_told_why(stub, message, code, words):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(message, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode[code]
    assert [word for word in words if word not in caught.value.details()] == []
    assert dict(caught.value.trailing_metadata())[REASON_METADATA].isalpha()


LONG = "é%" * 10_000


def with_input(name: str = "x", datatype: str = "INT32", shape: tuple[int, ...] = (1,)) -> pb.ModelInferRequest:
    message = request()
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def with_output(name: str) -> pb.ModelInferRequest:
    message = request()
    message.outputs.add(name=name)
    return message


@pytest.mark.parametrize(
    "message",
    [
        with_input(LONG), with_input(datatype=LONG), with_input(shape=(1,) * 10_000), with_output(LONG),
        request(**dict[str, Any]({LONG: 1})), request(max_tokens=LONG), with_json({LONG: 1}),
        with_json({"stop": LONG, "n": LONG}), request(request_id=LONG), request(tenant=LONG),
    ],
)  # fmt: skip
async def test_a_long_name_does_not_hide_the_reason(stub, message):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(message, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details() or "") < 1000


def test_a_refusal_fits_into_the_headers_of_a_call():
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "X", "𝄞" * 5000)
    assert len(quote(refusal.message)) <= 4200
    assert refusal.message.endswith("…")


async def test_deltas_stream_and_the_last_one_says_so(stub):
    message = request(stream=True, triton_enable_empty_final_response=True)
    found = [response.infer_response for response in await stream(stub, message)]
    assert "".join(text for response in found for text in outputs(response)["text_output"]) == "hello world"
    assert [response.parameters["triton_final_response"].bool_param for response in found].index(True) == len(found) - 1
    assert outputs(found[-1])["finish_reason"] == ["stop"]
    assert len(found) > 5


async def test_an_error_ends_its_request_and_not_the_stream(stub):
    wrong, right = request(top_p=2.0), request()
    wrong.id, right.id = "wrong", "right"
    found = {response.infer_response.id: response for response in await stream(stub, wrong, right)}
    assert found["wrong"].error_message == "TopPInvalid: top_p 2.0 is outside (0, 1]"
    assert outputs(found["right"].infer_response)["text_output"] == ["hello world"]


async def test_requests_of_one_stream_run_at_the_same_time(stub, pod):
    pod.engine.flow.clear()
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        answered = group.create_task(stream(stub, *[request() for _ in range(4)]))
        while len(pod.engine.running) < 4:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.005)
        pod.engine.flow.set()
    assert len(answered.result()) == 4


async def test_a_cancelled_stream_aborts_its_requests(stub, pod):
    pod.engine.flow.clear()
    call = stub.ModelStreamInfer(iter([request(), request()]), timeout=SECONDS)
    await call.initial_metadata()
    async with asyncio.timeout(SECONDS):
        while len(pod.engine.running) < 2:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.005)
        call.cancel()
        while len(pod.engine.aborted) < 2:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.005)


async def test_health_and_metadata(stub, pod):
    assert (await stub.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS)).live
    assert (await stub.ServerReady(pb.ServerReadyRequest(), timeout=SECONDS)).ready
    ready = {}
    for name, version in (("fake", ""), ("fake", "1"), ("fake", "2"), ("other", "")):
        answer = await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version), timeout=SECONDS)
        ready[name, version] = answer.ready
    assert ready == {("fake", ""): True, ("fake", "1"): True, ("fake", "2"): False, ("other", ""): False}
    assert (await stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=SECONDS)).name == "shift-runtime"
    metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="fake"), timeout=SECONDS)
    assert [(tensor.name, tensor.datatype) for tensor in metadata.inputs][:1] == [("text_input", "BYTES")]
    assert metadata.outputs[0].name == "text_output"
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.ModelMetadata(pb.ModelMetadataRequest(name="other"), timeout=SECONDS)


async def test_a_pod_that_starts_is_live_and_not_ready(start_pod):
    pod = await start_pod(lambda engine: engine.may_start.clear(), ready=False)
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(pod.channel)
    assert (await stub.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS)).live
    assert not (await stub.ServerReady(pb.ServerReadyRequest(), timeout=SECONDS)).ready
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request(), timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    pod.engine.may_start.set()
    await pod.until_ready()


def test_parameters_may_come_as_json_with_numbers_as_text():
    """As the examples of Triton's vLLM backend write them."""
    message = with_json(
        {"temperature": "0.1", "top_p": 0.95, "max_tokens": "100", "stop": ["a", "b"], "logit_bias": {"7": 1}}
    )
    assert asked(message).options == Options(
        temperature=0.1, top_p=0.95, max_tokens=100, stop=("a", "b"), logit_bias={7: 1.0}
    )


def test_parameters_may_come_as_tensors():
    message = request()
    add(message, "random_seed", "INT64", 7)
    add(message, "stop_words", "BYTES", b"a", b"b")
    add(message, "ignore_eos", "BOOL", True)
    assert asked(message).options == Options(seed=7, stop=("a", "b"), ignore_eos=True)


def test_what_is_not_sampling_reaches_the_generation():
    message = request(tenant="t", priority=3, timeout=2_500_000, add_special_tokens=False)
    found = asked(message)
    assert (found.tenant, found.priority, found.timeout_seconds, found.add_special_tokens) == ("t", 3, 2.5, False)
    assert asked(request(json_schema='{"type": "object"}')).options.grammar == Grammar(
        "json_schema", '{"type": "object"}'
    )
    assert asked(with_json({"json_schema": {"type": "object"}})).options.grammar.text == '{"type": "object"}'
    assert asked(request(json_object=True)).options.grammar == Grammar("json_object", "")


def wrong(change) -> str:
    message = request()
    change(message)
    with pytest.raises(Refusal) as caught:
        read_request(message, None, None)
    return caught.value.message


def test_broken_tensors_are_refused_with_their_name():
    assert "given twice" in wrong(lambda m: add(m, "text_input", "BYTES", b"x"))
    assert "datatype 'FP8'" in wrong(lambda m: m.inputs.add(name="x", datatype="FP8"))
    assert "shape [2, 2]" in wrong(lambda m: m.inputs.add(name="x", datatype="INT32", shape=[2, 2]))
    assert "shape [2] and 0 elements" in wrong(lambda m: m.inputs.add(name="x", datatype="INT32", shape=[2]))
    assert "2 raw_input_contents for 1 inputs" in wrong(lambda m: m.raw_input_contents.extend([b"", b""]))
    assert "reaches beyond" in wrong(lambda m: m.raw_input_contents.append(b"\xff\xff\xff\xff"))
    assert "no UTF-8" in wrong(lambda m: m.raw_input_contents.append(b"\1\0\0\0\xff"))
    assert "give one" in wrong(lambda m: add(m, "input_ids", "INT64", 1))
    assert "'seed' is given twice" in wrong(
        lambda m: [add(m, "random_seed", "INT64", 1), add(m, "sampling_parameters", "BYTES", b'{"seed": 1}')]
    )


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_NAMES = st.sampled_from(["temperature", "top_k", "stop", "stop_token_ids", "logit_bias", "n", "regex", "timeout", "x"])


@settings(deadline=None)  # a busy machine is no finding; the test has a deadline
@given(st.dictionaries(_NAMES, _JSON, max_size=3))
def test_whatever_the_parameters_hold_is_read_or_refused(parameters):
    with contextlib.suppress(Refusal):
        read_request(with_json(parameters), None, None)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.sampled_from(["BYTES", "INT32", "INT64", "BOOL", "FP32"]), st.integers(-2, 9))
def test_whatever_the_raw_bytes_hold_is_read_or_refused(raw, datatype, size):
    message = pb.ModelInferRequest(model_name="fake")
    message.inputs.add(name="text_input", datatype=datatype, shape=[size])
    message.raw_input_contents.append(raw)
    with contextlib.suppress(Refusal):
        read_request(message, None, None)
