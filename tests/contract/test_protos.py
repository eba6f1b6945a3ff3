"""The wire contract: generated code is what the .proto files say, and no change breaks a peer of the last version.

`v1.wire` lists what is on the wire. Additions are appended to it by

    python tests/contract/test_protos.py

which refuses to write a listing that breaks an earlier one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor, ServiceDescriptor
from shiftprotos.kserve import open_inference_pb2
from shiftprotos.v1 import control_pb2, inference_pb2

REPOSITORY = Path(__file__).resolve().parents[2]
BASELINE = Path(__file__).with_name("v1.wire")
GENERATED = sorted((REPOSITORY / "protos/shiftprotos").glob("*/*_pb2*.py*"))
SECONDS = 100

_TYPES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def listing() -> dict[str, str]:
    """What two peers must agree on: name of the thing → its meaning on the wire."""
    lines: dict[str, str] = {}
    for file in (inference_pb2.DESCRIPTOR, control_pb2.DESCRIPTOR, open_inference_pb2.DESCRIPTOR):
        lines |= dict(_file(file))
    return lines


def _file(file: FileDescriptor) -> Iterator[tuple[str, str]]:
    for message in file.message_types_by_name.values():
        yield from _message(message)
    for enum in file.enum_types_by_name.values():
        yield from _enum(enum)
    for service in file.services_by_name.values():
        yield from _service(service)


def _message(message: Descriptor) -> Iterator[tuple[str, str]]:
    yield f"message {message.full_name}", "declared"
    for field in message.fields:
        yield f"field {message.full_name} {field.number}", f"{_type(field)} {field.name}"
    for nested in message.nested_types:
        yield from _message(nested)
    for enum in message.enum_types:
        yield from _enum(enum)


def _type(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    words = [named.full_name if named else _TYPES[field.type]]
    if field.is_repeated:
        words.insert(0, "repeated")
    elif field.containing_oneof is not None:
        words.insert(0, f"oneof:{field.containing_oneof.name}")
    return " ".join(words)


def _enum(enum: EnumDescriptor) -> Iterator[tuple[str, str]]:
    for value in enum.values:
        yield f"enum {enum.full_name} {value.number}", value.name


def _service(service: ServiceDescriptor) -> Iterator[tuple[str, str]]:
    for method in service.methods:
        asks = ("stream " if method.client_streaming else "") + method.input_type.full_name
        answers = ("stream " if method.server_streaming else "") + method.output_type.full_name
        yield f"rpc {service.full_name}/{method.name}", f"{asks} -> {answers}"


def read_baseline() -> dict[str, str]:
    lines = [line for line in BASELINE.read_text().splitlines() if line and not line.startswith("#")]
    return {name: meaning for name, _, meaning in (line.partition(" = ") for line in lines)}


def breaks(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What a peer that speaks ``before`` would misread."""
    return [
        f"{name}: {meaning} became {after.get(name, 'missing')}"
        for name, meaning in before.items()
        if after.get(name) != meaning
    ]


def test_no_change_breaks_a_peer():
    assert breaks(read_baseline(), listing()) == []


def test_the_baseline_holds_every_addition():
    """An addition that is not in the baseline could be changed again without anybody noticing."""
    missing = sorted(set(listing()) - set(read_baseline()))
    assert missing == [], "run `python tests/contract/test_protos.py` and commit v1.wire"


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("field shiftparallel.v1.Policy 3", None),
        ("field shiftparallel.v1.Policy 3", "uint32 generation"),
        ("field shiftparallel.v1.Policy 3", "uint64 version"),
        ("rpc shiftparallel.v1.Inference/Generate", "shiftparallel.v1.GenerateRequest -> shiftparallel.v1.Usage"),
        ("enum shiftparallel.v1.PolicyMode 2", "POLICY_MODE_FAST"),
    ],
)
def test_a_breaking_change_is_seen(name, meaning):
    after = {key: value for key, value in listing().items() if key != name}
    if meaning is not None:
        after[name] = meaning
    assert [line.split(":")[0] for line in breaks(read_baseline(), after)] == [name]


def test_generated_code_is_fresh(tmp_path):
    """`protos/generate.sh` has been run since the last change of a .proto file."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # generate.sh runs `python`
    subprocess.run(
        [str(REPOSITORY / "protos/generate.sh"), str(tmp_path)],
        check=True,
        timeout=SECONDS,
        env={**os.environ, "PATH": path},
    )
    fresh = sorted((tmp_path / "shiftprotos").glob("*/*"))
    assert [file.name for file in fresh] == [file.name for file in GENERATED]
    stale = [a.name for a, b in zip(fresh, GENERATED, strict=True) if a.read_bytes() != b.read_bytes()]
    assert stale == [], "run protos/generate.sh and commit"


def main() -> int:
    broken = breaks(read_baseline(), listing()) if BASELINE.exists() else []
    if broken:
        print("breaking changes:", *broken, sep="\n  ", file=sys.stderr)
        return 1
    lines = [f"{name} = {meaning}" for name, meaning in listing().items()]
    BASELINE.write_text(
        "\n".join(["# shiftparallel.v1 and inference (KServe v2) on the wire; see test_protos.py", *lines, ""])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
