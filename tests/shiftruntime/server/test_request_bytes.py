"""Bytes that a client may send as a GenerateRequest: admitted as the engine understands them, or refused by type."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from helpers.failures.byte_targets import check_request
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from shiftprotos.v1 import inference_pb2 as pb

FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
_NUMBERS = {
    FieldDescriptor.TYPE_UINT32: st.integers(0, 4) | st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-4, 4) | st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32) | st.floats(0, 1, width=32),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(max_size=6) | st.text(min_size=250, max_size=300),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=6),
}


def messages(descriptor: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Any fields of a message, each with any value of its type: new fields are tried without a line here."""
    return st.fixed_dictionaries({}, optional={field.name: values(field) for field in descriptor.fields})


def values(field: Any) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(values(key), values(value), max_size=4)
    if field.type == FieldDescriptor.TYPE_ENUM:
        one: st.SearchStrategy[Any] = st.sampled_from([value.number for value in field.enum_type.values])
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        one = messages(field.message_type)
    else:
        one = _NUMBERS[field.type]
    return st.lists(one, max_size=4) if field.is_repeated else one


@FUZZ
@given(messages(pb.GenerateRequest.DESCRIPTOR))
def test_any_request_is_admitted_or_refused(fields: dict[str, Any]) -> None:
    if "text" in fields and "tokens" in fields:
        del fields["text"]
    event("admitted" if check_request(pb.GenerateRequest(**fields).SerializeToString()) else "refused")


@FUZZ
@given(messages(pb.GenerateRequest.DESCRIPTOR), st.data())
def test_any_damage_to_a_request_is_refused_or_harmless(fields: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(pb.GenerateRequest(**fields).SerializeToString())
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        raw[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    check_request(bytes(raw))


@FUZZ
@given(st.binary(max_size=100))
def test_any_bytes_are_refused_or_harmless(data: bytes) -> None:
    check_request(data)


def test_a_plain_request_is_admitted() -> None:
    assert check_request(pb.GenerateRequest(text="hello").SerializeToString())
