"""Values of a property: valid ones in the middle and at the bounds, empty, unicode, and ones that must be refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from helpers.spec_properties.schema import KEY, Property, Schema, put

ORDINARY = "beside"  # objects.py makes what may be called so
UNICODE = "größe-模型-🚀"
MUST_BE_REFUSED = ("below", "above", "wrong type", "not listed")
# One of these has the form that a pattern asks for.
_WORDS = (ORDINARY, "22:00", "UTC", "1", "100m", "30s", "16Gi", "a/b")
_LONGEST = 4096  # where the schema has no bound

_CLAIM = {"name": "gpus", "resourceClaimTemplateName": ORDINARY}
# What no schema says: values of a certain form, the first one the most ordinary.
_SAMPLES: dict[str, tuple[Any, ...]] = {
    "model": ({"uri": "pvc://gemma-270m/other.gguf"},),
    "model.secretRef": ({"name": ORDINARY},),
    "cache": ({"claimName": ORDINARY},),
    "model.uri": ("pvc://gemma-270m/other.gguf", "file:///models/größe-模型.gguf", "pvc://no-such-claim/m.gguf"),
    "model.servedName": ("team/other:1",),
    "shift.schedules": ([{"name": "night", "start": "22:00", "end": "06:00", "policy": "Throughput"}],),
    "shift.schedules[]": ({"name": "night", "start": "22:00", "end": "06:00", "policy": "Throughput"},),
    "shift.schedules[].end": ("06:00",),
    "shift.schedules[].timeZone": ("Europe/Berlin",),
    "rollout.restartedAt": ("2026-01-02T03:04:05Z", "2026-01-02T05:04:05+02:00"),
    "runtime.gpuResource": ("nvidia.com/gpu",),
    "runtime.resourceClaims[]": (_CLAIM,),
    "placement": ({"nodeSelector": {"zone": "a"}},),
    "placement.tolerations[]": ({"key": "gpu", "operator": "Exists"},),
    "runtime.image": ("registry.example/runtime:other",),
    "runtime.env": ([{"name": "MODE", "value": UNICODE}],),
    "runtime.env[]": ({"name": "MODE", "value": "other"},),
    "runtime.env[].name": ("MODE", "SHIFT_POD_NAME"),
    "runtime.env[].valueFrom": ({"fieldRef": {"fieldPath": "spec.nodeName"}}, {"secretKeyRef": {"name": "no-such"}}),
    "podTemplate.metadata.labels": ({"team": "search"},),
    "podTemplate.metadata.labels{}": ("search",),
    "podTemplate.spec.restartPolicy": ("Always",),
    "podTemplate.spec.serviceAccountName": ("default", "no-such-account"),
    "podTemplate.spec.hostNetwork": (False,),
    "podTemplate.spec.containers": ([{"name": "beside", "image": "beside:1"}],),
    "podTemplate.spec.containers[]": ({"name": "beside", "image": "beside:1"},),
    "podTemplate.spec.containers[].name": ("runtime", "beside"),
    "podTemplate.spec.containers[].image": ("beside:1",),
}
# What another field must say so that this one can be set; the longest path that fits counts.
_COMPANIONS: dict[str, Schema] = {
    "shift.adaptive": {"slo": {"ttftMs": 2000, "tpotMs": 100}},
    "shift.adaptive.minTokens": {
        "slo": {"ttftMs": 2000, "tpotMs": 100},
        "shift": {"adaptive": {"maxTokens": 1048576}},
    },
    "model.revision": {"model": {"uri": "hf://team/tiny"}},
    "model.secretRef": {"model": {"uri": "hf://team/tiny"}},
    "runtime.resourceClaims[]": {"runtime": {"resourceClaims": [_CLAIM]}},
    "runtime.gpuResource": {"runtime": {"device": "cuda"}},
    "runtime.resourceClaims[].resourceClaimName": {"runtime": {"resourceClaims": [{"name": "gpus"}]}},
    "placement.tolerations[]": {"placement": {"tolerations": [{"key": "gpu"}]}},
    "placement.tolerations[].tolerationSeconds": {
        "placement": {"tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute"}]}
    },
    "shift.schedules[]": {"shift": {"schedules": [{"end": "06:00"}]}},
    "autoscaling.mode": {"autoscaling": {"max": 2}},
    "autoscaling.min": {"autoscaling": {"max": 1000}},
    "autoscaling.shiftBeforeScale.highUtilizationPercent": {
        "autoscaling": {"shiftBeforeScale": {"lowUtilizationPercent": 1}}
    },
    "autoscaling.shiftBeforeScale.lowUtilizationPercent": {
        "autoscaling": {"shiftBeforeScale": {"highUtilizationPercent": 100}}
    },
    "parallelism.sequence": {"parallelism": {"gpus": 64}},
    "parallelism.tensor": {"parallelism": {"gpus": 64}},
    "podTemplate.spec.containers[]": {"podTemplate": {"spec": {"containers": [{"image": "beside:1"}]}}},
}
_KEYS = {"resources": "cpu", "labels": "team", "annotations": "example.com/team"}
# More pods than this are asked for with `suspend`: they would be made one by one.
_MOST_PODS = 4


@dataclass(frozen=True)
class Value:
    kind: str
    spec: Schema
    shown: str


def values(prop: Property, base: Schema) -> Iterator[Value]:
    """Specs with `prop` set, each beside what it needs."""
    for kind, value in _values(prop):
        key = UNICODE if kind == "unicode key" else _key(prop)
        made = put(_merged(_companion(prop, value), base), prop, value, key, smallest)
        shown = repr(value)
        yield Value(kind, made, shown if len(shown) < 60 else f"{shown[:57]}…")


def smallest(schema: Schema) -> Any:
    """The least value that the schema takes, with ordinary names in it."""
    kind = schema.get("type")
    if kind == "object":
        inner = schema.get("properties", {})
        return {name: smallest(inner[name]) for name in schema.get("required", ())}
    if kind == "array":
        return []
    if "enum" in schema:
        return schema["enum"][0]
    return {"integer": schema.get("minimum", 1), "boolean": True}.get(str(kind), word(schema))


def word(schema: Schema) -> str:
    """A text of the form that the schema asks for."""
    pattern = schema.get("pattern", "")
    return next((text for text in _WORDS if re.search(pattern, text)), _WORDS[0])


def _values(prop: Property) -> Iterator[tuple[str, Any]]:
    for sample in _SAMPLES.get(str(prop), ()):
        yield "set", sample
    schema = prop.schema
    if "enum" in schema:
        yield from (("set", value) for value in schema["enum"])
        yield "not listed", UNICODE if schema["type"] == "string" else max(schema["enum"]) + 1
    elif schema.get("x-kubernetes-int-or-string"):
        yield from (("set", "100m"), ("set", 1), ("unicode", UNICODE), ("empty", ""))
    else:
        yield from _OF_TYPE[schema["type"]](prop)
    yield "wrong type", [[]] if schema.get("type") != "array" else "text"


def _integers(prop: Property) -> Iterator[tuple[str, Any]]:
    low, high = prop.schema.get("minimum", 0), prop.schema.get("maximum", 2**31 - 1)
    yield "set", low + (high - low) // 3
    yield "min", low
    yield "max", high
    yield "below", low - 1
    if "maximum" in prop.schema:
        yield "above", high + 1


def _booleans(_: Property) -> Iterator[tuple[str, Any]]:
    yield from (("set", True), ("set", False))


def _strings(prop: Property) -> Iterator[tuple[str, Any]]:
    schema, samples = prop.schema, _SAMPLES.get(str(prop), ())
    if not samples:
        yield "set", word(schema)
    longest = min(schema.get("maxLength", _LONGEST), _LONGEST)
    shortest = schema.get("minLength", 0)
    yield "min", "m" * shortest
    head = "file:///" if str(prop) == "model.uri" else ""
    yield "max", head + "m" * (longest - len(head))
    if schema.get("maxLength", 2**31) <= 65536:
        yield "above", "m" * (schema["maxLength"] + 1)
    yield "empty", ""
    yield "unicode", UNICODE


def _objects(prop: Property) -> Iterator[tuple[str, Any]]:
    schema = prop.schema
    yield "empty", {}
    if schema.get("required"):
        yield "set", smallest(schema)
    inner = schema.get("additionalProperties")
    if isinstance(inner, dict):
        one = _value_of_map(prop, inner)
        yield "set", {_key(prop): one}
        if "maxProperties" in schema:
            yield "max", {f"example.com/k{i}": one for i in range(schema["maxProperties"])}
            yield "above", {f"example.com/k{i}": one for i in range(schema["maxProperties"] + 1)}
        yield "unicode", {UNICODE: one}
    elif schema.get("x-kubernetes-preserve-unknown-fields"):
        yield "unicode", {UNICODE: 1}


def _arrays(prop: Property) -> Iterator[tuple[str, Any]]:
    schema, items = prop.schema, prop.schema["items"]
    yield "empty", []
    keyed = "name" in items.get("properties", {})
    text = items.get("type") == "string"

    def filled(number: int) -> list[Any]:
        if text:
            return [*items.get("enum", ()), *(f"v{i}" for i in range(number))][:number]
        return [{**smallest(items), **({"name": f"n{i}"} if keyed else {}), **_image(prop)} for i in range(number)]

    yield "set", filled(1)
    if "maxItems" in schema:
        yield "max", filled(schema["maxItems"])
        yield "above", filled(schema["maxItems"] + 1)
    if text:
        yield "unicode", [UNICODE]


def _image(prop: Property) -> Schema:
    return {"image": "beside:1"} if prop.word == "containers" else {}


_OF_TYPE = {
    "integer": _integers,
    "boolean": _booleans,
    "string": _strings,
    "object": _objects,
    "array": _arrays,
}


def _value_of_map(prop: Property, inner: Schema) -> Any:
    if inner.get("x-kubernetes-int-or-string"):
        return "1"
    return smallest(inner)


def _key(prop: Property) -> str:
    return next((key for part, key in _KEYS.items() if part in prop.path), "example")


def _companion(prop: Property, value: Any) -> Schema:
    if prop.path == ("replicas",) and isinstance(value, int) and value > _MOST_PODS:
        return {"suspend": True}
    fits = [path for path in _COMPANIONS if str(prop) == path or str(prop).startswith((f"{path}.", f"{path}{KEY}"))]
    return _COMPANIONS[max(fits, key=len)] if fits else {}


def _merged(one: Any, other: Any) -> Any:
    """What the first says holds."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one
    return {**other, **{name: _merged(value, other[name]) if name in other else value for name, value in one.items()}}
