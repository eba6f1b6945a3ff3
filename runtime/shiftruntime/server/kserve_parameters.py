"""What a request of the Open Inference Protocol asks for, as tensors, as request parameters, or as JSON in a tensor.

A parameter may come in any of the three places, but in one of them only. Unknown ones are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import msgspec
from shiftprotos.kserve import open_inference_pb2 as pb

from shiftruntime.engine.messages import Grammar
from shiftruntime.server.kserve_tensors import Tensor, invalid, read_inputs
from shiftruntime.server.refusal import Refusal, quoted
from shiftruntime.server.request import Generation, Options
from shiftruntime.server.trace_context import TraceContext
from shiftruntime.server.unsupported import check_supported

TEXT_INPUT = "text_input"
TOKEN_INPUT = "input_ids"  # noqa: S105 - tokens of text
STREAM = "stream"
EXCLUDE_INPUT = "exclude_input_in_output"
JSON_PARAMETERS = "sampling_parameters"
# Triton's clients send it to hear of the end of a stream; every last response says so here anyway.
_IGNORED = ("triton_enable_empty_final_response",)


def _number(name: str, value: Any) -> float:
    """Numbers may be written as text: Triton's examples do."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _wrong(name, value, "a number") from None


def _whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise _wrong(name, value, "a whole number") from None


def _flag(name: str, value: Any) -> bool:
    words = {"true": True, "false": False}
    if isinstance(value, str):
        value = words.get(value.lower(), value)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_text(name, text) for text in values)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_whole(name, token) for token in values)


def _biases(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object of token id: bias")
    return {_whole(name, token): _number(name, bias) for token, bias in value.items()}


_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "temperature": _number, "top_p": _number, "top_k": _whole, "min_p": _number, "seed": _whole, "max_tokens": _whole,
    "min_tokens": _whole, "stop": _texts, "stop_token_ids": _ids, "ignore_eos": _flag, "n": _whole,
    "repetition_penalty": _number, "presence_penalty": _number, "frequency_penalty": _number, "logit_bias": _biases,
}  # fmt: skip
_GRAMMARS = ("json_schema", "json_object", "regex")
_REQUEST: dict[str, Callable[[str, Any], Any]] = {
    "tenant": _text, "priority": _whole, "timeout_seconds": _number, "timeout": _number, "add_special_tokens": _flag,
    STREAM: _flag, EXCLUDE_INPUT: _flag,
}  # fmt: skip
# Names that other servers use for the same.
_ALIASES = {"stop_words": "stop", "random_seed": "seed", "max_new_tokens": "max_tokens"}
PARAMETERS = (*_OPTIONS, *_GRAMMARS, *_REQUEST)


def read_request(
    request: pb.ModelInferRequest, deadline_seconds: float | None, trace: TraceContext | None
) -> tuple[Generation, bool]:
    """(the generation, whether it streams); raises Refusal.

    The id of the request only matches answers to requests: clients need not choose a unique one, so the engine gets
    another.
    """
    tensors = read_inputs(request)
    prompt = _prompt(tensors)
    given = _collect(request, tensors)
    timeout = given.get("timeout_seconds")
    if "timeout" in given:
        timeout = given["timeout"] / 1e6  # Triton's is in microseconds
    generation = Generation(
        prompt,
        Options(**{name: given[name] for name in _OPTIONS if name in given}, grammar=_grammar(given)),
        model=request.model_name,
        tenant=given.get("tenant", ""),
        priority=given.get("priority", 0),
        timeout_seconds=timeout,
        deadline_seconds=deadline_seconds,
        echo=not given.get(EXCLUDE_INPUT, True),
        add_special_tokens=given.get("add_special_tokens", True),
        trace=trace,
    )
    return generation, given.get(STREAM, False)


def _prompt(tensors: Mapping[str, Tensor]) -> str | tuple[int, ...] | None:
    text, tokens = tensors.get(TEXT_INPUT), tensors.get(TOKEN_INPUT)
    if text is not None and tokens is not None:
        raise invalid(f"both {TEXT_INPUT} and {TOKEN_INPUT} are given; give one")
    if tokens is not None:
        if not tokens.datatype.startswith(("INT", "UINT")):
            raise invalid(f"input {TOKEN_INPUT!r} has datatype {tokens.datatype}; use INT32 or INT64")
        return tuple(int(token) for token in tokens.values)
    if text is None:
        return None
    if text.datatype != "BYTES" or len(text.values) != 1:
        shown = f"{text.datatype} [{len(text.values)}]"
        raise invalid(f"input {TEXT_INPUT!r} is {shown}; use BYTES [1], one prompt a request")
    return _decoded(TEXT_INPUT, text.values[0])


def _collect(request: pb.ModelInferRequest, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Checked parameters by name, from all three places."""
    values: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        known = _ALIASES.get(name, name)
        if known in values:
            raise _refused(f"parameter {quoted(name)} is given twice")
        values[known] = value

    for name, parameter in request.parameters.items():
        add(name, getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None))
    for name, tensor in tensors.items():
        if name == JSON_PARAMETERS:
            for key, value in _json_object(tensor).items():
                add(key, value)
        elif name not in (TEXT_INPUT, TOKEN_INPUT):
            add(name, _of_tensor(tensor))
    check_supported(values)
    return {name: _converted(name, value) for name, value in values.items() if name not in _IGNORED}


def _converted(name: str, value: Any) -> Any:
    convert = _OPTIONS.get(name) or _REQUEST.get(name)
    if convert is not None:
        return convert(name, value)
    if name == "json_object":
        return _flag(name, value)
    if name in _GRAMMARS:
        return json.dumps(value) if isinstance(value, dict) else _text(name, value)
    raise _refused(f"parameter {quoted(name)} is unknown; known are {', '.join(PARAMETERS)}")


def _grammar(given: Mapping[str, Any]) -> Grammar | None:
    asked = [name for name in _GRAMMARS if given.get(name)]
    if len(asked) > 1:
        raise _refused(f"{' and '.join(asked)} exclude each other; give one")
    if not asked:
        return None
    return Grammar("json_object", "") if asked[0] == "json_object" else Grammar(asked[0], given[asked[0]])  # type: ignore[arg-type]


def _of_tensor(tensor: Tensor) -> Any:
    """A scalar, or a list of several."""
    values = [_decoded(tensor.name, value) if isinstance(value, bytes) else value for value in tensor.values]
    return values[0] if len(values) == 1 else values


def _json_object(tensor: Tensor) -> dict[str, Any]:
    text = _of_tensor(tensor)
    try:
        # Unlike json: no half of a surrogate pair, which nothing behind here could encode.
        parsed = msgspec.json.decode(text) if isinstance(text, str) else None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _refused(f"{JSON_PARAMETERS} is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise _refused(f"{JSON_PARAMETERS} holds no JSON object in one element of BYTES")
    return parsed


def _decoded(name: str, value: Any) -> str:
    try:
        return str(value, "utf-8")
    except (TypeError, UnicodeDecodeError) as error:
        raise invalid(f"input {quoted(name)} is no UTF-8: {error}") from error


def _wrong(name: str, value: Any, expected: str) -> Refusal:
    shown = repr(value)
    return _refused(
        f"parameter {quoted(name)} is {shown if len(shown) <= 64 else shown[:64] + '…'}; {expected} is expected"
    )


def _refused(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "ParameterInvalid", message)
