"""Tensors of the Open Inference Protocol, in both encodings: typed contents, and raw little-endian bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from shiftprotos.kserve import open_inference_pb2 as pb

from shiftruntime.server.refusal import Refusal, quoted

Value: TypeAlias = "bool | int | float | bytes"


@dataclass(frozen=True)
class _Type:
    code: str  # of struct
    contents: str  # field of InferTensorContents


_TYPES = {
    "BOOL": _Type("?", "bool_contents"),
    "INT8": _Type("b", "int_contents"),
    "INT16": _Type("h", "int_contents"),
    "INT32": _Type("i", "int_contents"),
    "INT64": _Type("q", "int64_contents"),
    "UINT8": _Type("B", "uint_contents"),
    "UINT16": _Type("H", "uint_contents"),
    "UINT32": _Type("I", "uint_contents"),
    "UINT64": _Type("Q", "uint64_contents"),
    "FP32": _Type("f", "fp32_contents"),
    "FP64": _Type("d", "fp64_contents"),
    "BYTES": _Type("", "bytes_contents"),
}


@dataclass(frozen=True)
class Tensor:
    """One-dimensional; a batch dimension of 1 in front is dropped."""

    name: str
    datatype: str
    values: tuple[Value, ...]


def read_inputs(request: pb.ModelInferRequest) -> dict[str, Tensor]:
    """Tensors by name; raises Refusal (INVALID_ARGUMENT)."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs; give one for each")
    tensors: dict[str, Tensor] = {}
    for index, given in enumerate(request.inputs):
        if given.name in tensors:
            raise invalid(f"input {quoted(given.name)} is given twice")
        tensors[given.name] = _read(given, raw[index] if raw else None)
    return tensors


def write_outputs(tensors: Sequence[Tensor], response: pb.ModelInferResponse) -> None:
    """Append to the response, raw."""
    for tensor in tensors:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=[len(tensor.values)])
        response.raw_output_contents.append(_pack(tensor))


def invalid(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "TensorInvalid", message)


def _read(given: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    known = _TYPES.get(given.datatype)
    if known is None:
        raise invalid(
            f"input {quoted(given.name)} has datatype {quoted(given.datatype)}; known are {', '.join(_TYPES)}"
        )
    contents = getattr(given.contents, known.contents)
    values = tuple(contents) if raw is None else _unpack(given.name, given.datatype, raw)
    elements = _elements(given.name, given.shape)
    if elements != len(values):
        raise invalid(f"input {quoted(given.name)} has shape {_shown(given.shape)} and {len(values)} elements")
    return Tensor(given.name, given.datatype, values)


def _elements(name: str, shape: Sequence[int]) -> int:
    """Elements of a vector; [1, n] is one as well."""
    sizes = list(shape)
    if len(sizes) == 2 and sizes[0] == 1:
        sizes = sizes[1:]
    if len(sizes) != 1 or sizes[0] < 0:
        raise invalid(
            f"input {quoted(name)} has shape {_shown(shape)}; use [n], or [1, n]. Batches are made by the server"
        )
    return sizes[0]


def _unpack(name: str, datatype: str, raw: bytes) -> tuple[Value, ...]:
    if datatype == "BYTES":
        return tuple(_unpack_bytes(name, raw))
    code = _TYPES[datatype].code
    size = struct.calcsize(f"<{code}")
    if len(raw) % size:
        raise invalid(f"input {quoted(name)} has {len(raw)} raw bytes, no multiple of the {size} of {datatype}")
    return struct.unpack(f"<{len(raw) // size}{code}", raw)


def _unpack_bytes(name: str, raw: bytes) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise invalid(f"input {quoted(name)}: element {len(elements)} reaches beyond the {len(raw)} raw bytes")
        elements.append(raw[at + 4 : end])
        at = end
    return elements


def _pack(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        parts = [value for value in tensor.values if isinstance(value, bytes)]
        return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return struct.pack(f"<{len(tensor.values)}{_TYPES[tensor.datatype].code}", *tensor.values)


def _shown(shape: Sequence[int]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"[{', '.join(map(str, shape[:8]))}, …] of {len(shape)} sizes"
