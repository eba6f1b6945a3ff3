from __future__ import annotations

from typing import Any

import pytest
from shiftcore.layout import Gear
from shiftcore.scaling import Limits, MetricsLoss, Mode
from shiftoperator.errors import InvalidSpecError
from shiftoperator.spec import Policy, parse, pods_asked

MINIMAL: dict[str, Any] = {"model": {"uri": "file:///m.gguf"}, "parallelism": {"gpus": 4}}


def test_defaults() -> None:
    spec = parse(MINIMAL)
    assert spec.base_gear == Gear(4, 1)
    assert spec.policy == Policy("Auto", None)
    assert (spec.replicas, spec.autoscaling.mode, spec.runtime.device) == (1, Mode.DISABLED, "cpu")
    assert spec.model.location("/models") == "/m.gguf"
    assert spec.model.claim is None


@pytest.mark.parametrize("asked", [[[]], [], {}, 5, True, None, "", "now", "2026-01-31", "2026-01-31T12:00:00",
    "2026-02-30T12:00:00Z", "2026-01-31T12:00:00Z, or so", "2026-01-31T24:00:00Z"])  # fmt: skip
def test_a_restart_at_no_time_is_refused(asked: Any) -> None:
    """The CRD took any list for a time, and pods were replaced by it."""
    with pytest.raises(InvalidSpecError, match=r"rollout\.restartedAt .* is no time; write it as 2026-01-31T12:00:00Z"):
        parse({**MINIMAL, "rollout": {"restartedAt": asked}})


@pytest.mark.parametrize(
    "asked", ["2026-01-31T12:00:00Z", "2026-01-31t12:00:00.123456789z", "2026-01-31T12:00:00+02:00"]
)
def test_a_restart_at_a_time_is_none_that_was_refused_before(asked: str) -> None:
    parse({**MINIMAL, "rollout": {"restartedAt": asked}})


@pytest.mark.parametrize(
    ("parallelism", "gear"),
    [
        ({"gpus": 1}, Gear(1, 1)),
        ({"gpus": 8, "sequence": 4, "tensor": 2}, Gear(4, 2)),
        ({"gpus": 8, "sequence": 2}, Gear(2, 4)),
        ({"gpus": 8, "tensor": 8}, Gear(1, 8)),
    ],
)
def test_base_gear(parallelism: dict[str, int], gear: Gear) -> None:
    assert parse({**MINIMAL, "parallelism": parallelism}).base_gear == gear


@pytest.mark.parametrize(
    ("uri", "claim", "path"),
    [
        ("pvc://models/gemma.gguf", "models", "/models/gemma.gguf"),
        ("pvc://models/a/b/", "models", "/models/a/b"),
        ("pvc://models/", "models", "/models"),
        ("file:///srv/llama", None, "/srv/llama"),
    ],
)
def test_model_location(uri: str, claim: str | None, path: str) -> None:
    model = parse({**MINIMAL, "model": {"uri": uri}}).model
    assert (model.claim, model.location("/models")) == (claim, path)


@pytest.mark.parametrize(
    ("model", "location"),
    [
        ({"uri": "hf://google/gemma"}, "hf://google/gemma"),
        ({"uri": "hf://google/gemma", "revision": "refs/pr/1"}, "hf://google/gemma@refs/pr/1"),
        ({"uri": "hf://google/gemma/sub/q4.gguf", "revision": "v1"}, "hf://google/gemma@v1/sub/q4.gguf"),
        ({"uri": "s3://models/team/gemma"}, "s3://models/team/gemma"),
    ],
)
def test_what_is_fetched_keeps_its_uri(model: dict[str, Any], location: str) -> None:
    found = parse({**MINIMAL, "model": model}).model
    assert (found.fetched, found.claim, found.location("/models")) == (True, None, location)


@pytest.mark.parametrize(("text", "size"), [("64Mi", 2**26), ("200Gi", 200 * 2**30), ("2Ti", 2**41)])
def test_the_size_of_a_cache(text: str, size: int) -> None:
    cache = parse({**MINIMAL, "cache": {"sizeLimit": text}}).cache
    assert cache is not None
    assert cache.limit_bytes == size


def test_an_empty_cache_is_none() -> None:
    assert parse({**MINIMAL, "cache": {}}).cache is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"parallelism": {"gpus": 4, "sequence": 3, "tensor": 2}}, "sequence 3 × tensor 2 = 6, but gpus is 4"),
        ({"parallelism": {"gpus": 4, "tensor": 3}}, "but gpus is 4"),
        ({"parallelism": {"gpus": 0}}, "parallelism.gpus 0 must lie in 1..64"),
        ({"shift": {"policy": "Fast"}}, "'Fast' is unknown; use Auto, Latency, Throughput"),
        ({"shift": {"thresholdTokens": 0}}, "thresholdTokens 0 must lie in 1..1048576"),
        ({"shift": {"thresholdTokens": 1048577}}, "1048577"),
        ({"autoscaling": {"mode": "Apply", "min": 3, "max": 2}}, "min 3 is above max 2"),
        ({"autoscaling": {"mode": "Recommend"}}, "Recommend needs autoscaling.max"),
        ({"autoscaling": {"min": 2, "max": 3, "maxGpus": 7}}, "maxGpus 7 does not pay for autoscaling.min 2 pods of 4"),
        (
            {"autoscaling": {"shiftBeforeScale": {"lowUtilizationPercent": 80}}},
            "lowUtilizationPercent 80 must be below highUtilizationPercent 80",
        ),
        ({"slo": {"percentile": 42}}, "slo.percentile 42 is not reported by the pods; use 50, 90, 95, 99"),
        ({"model": {"uri": "pvc://a/b", "quantization": "awq"}}, "'awq' is unknown; use auto, none, fp8, int8, gguf"),
        ({"model": {"uri": "gs://bucket/gemma"}}, "'gs://bucket/gemma' cannot be read"),
        ({"model": {"uri": "hf://google/gemma@main"}}, "its revision in model.revision"),
        ({"model": {"uri": "s3://bucket/"}}, "'s3://bucket/' cannot be read"),
        ({"model": {"uri": "hf://google/../gemma.gguf"}}, "remove the '..'"),
        ({"model": {"uri": "s3://bucket/a", "revision": "v1"}}, "'v1' is of hf:// alone"),
        ({"model": {"uri": "hf://google/gemma", "revision": "a/../b"}}, "no branch, tag or commit"),
        ({"model": {"uri": "pvc://models/a", "secretRef": {"name": "hub"}}}, "opens hf:// and s3://"),
        ({"cache": {"claimName": "a", "sizeLimit": "1Gi"}}, "'1Gi' bounds the node's disk"),
        ({"engine": {"gpuMemoryPercent": 96}}, "gpuMemoryPercent 96 must lie in 10..95"),
        ({"engine": {"kvCacheDtype": "fp8"}}, "'fp8' is unknown; use auto, bfloat16"),
        ({"runtime": {"shmSize": "1G"}}, "'1G' is no size; write a number with Mi or Gi"),
        ({"runtime": {"gpuResource": "amd.com/gpu"}}, "is asked for with runtime.device cuda"),
        ({"runtime": {"device": "cuda", "gpuResource": "gpu"}}, "'gpu' is no resource, as nvidia.com/gpu is"),
        ({"runtime": {"resourceClaims": [{"name": "gpus"}]}}, "gpus needs resourceClaimName or"),
        (
            {"runtime": {"resourceClaims": 2 * [{"name": "gpus", "resourceClaimName": "a"}]}},
            "a name twice among gpus, gpus",
        ),
        ({"placement": {"spread": 2 * [{"topologyKey": "zone"}]}}, "a topologyKey twice among zone, zone"),
        ({"cache": {"sizeLimit": "1G"}}, "'1G' is no size; write a number with Mi, Gi or Ti"),
        ({"model": {"uri": "pvc://a/../b"}}, "remove the '..'"),
    ],
)
def test_refusals_name_value_and_fix(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse({**MINIMAL, **changed})
    assert words in caught.value.message
    assert caught.value.reason == "InvalidSpec"


def test_autoscaling_is_read() -> None:
    autoscaling = {
        "mode": "Apply",
        "min": 2,
        "max": 9,
        "maxGpus": 20,
        "onMetricsLoss": "ScaleToMax",
        "windows": {"scaleOutSeconds": 1, "scaleInSeconds": 2, "podStartSeconds": 3, "drainSeconds": 4},
        "shiftBeforeScale": {
            "highUtilizationPercent": 70,
            "lowUtilizationPercent": 30,
            "shiftedSharePercent": 40,
            "kvPressurePercent": 95,
        },
    }
    read = parse({**MINIMAL, "autoscaling": autoscaling, "slo": {"ttftMs": 500, "tpotMs": 50}}).autoscaling
    assert read.drain_seconds == 4
    assert read.limits == Limits(
        minimum=2,
        maximum=9,
        gpus_per_pod=4,
        max_gpus=20,
        out_seconds=1,
        in_seconds=2,
        pod_start_seconds=3,
        ttft_seconds=0.5,
        tpot_seconds=0.05,
        high_utilisation=0.7,
        low_utilisation=0.3,
        kv_pressure=0.95,
        shifted_share=0.4,
        on_metrics_loss=MetricsLoss.SCALE_TO_MAX,
    )


def test_an_object_stored_before_these_fields_gets_the_defaults_of_the_core() -> None:
    read = parse({**MINIMAL, "autoscaling": {"mode": "Apply", "min": 1, "max": 2}}).autoscaling
    assert read.limits == Limits(maximum=2, gpus_per_pod=4)
    assert read.drain_seconds == 300


def test_a_pinned_policy_leaves_nothing_to_shift() -> None:
    assert parse(MINIMAL).autoscaling.limits.may_shift
    assert not parse({**MINIMAL, "shift": {"policy": "Latency"}}).autoscaling.limits.may_shift


@pytest.mark.parametrize(
    "changed",
    [
        {"model": ["pvc://a/b"]},
        {"parallelism": None},
        {"parallelism": {"gpus": "two"}},
        {"replicas": "many"},
        {"replicas": -3},
        {"shift": [1]},
        {"autoscaling": "on"},
        {"autoscaling": {"mode": "Sometimes"}},
        {"slo": {"ttftMs": "soon"}},
    ],
)
def test_a_field_of_another_type_is_refused_and_no_fault_of_the_operator(changed: dict[str, Any]) -> None:
    """Past a CRD that lets it in; it was a trace in the log and no word in Ready."""
    spec = {**MINIMAL, **changed}
    with pytest.raises(InvalidSpecError):
        parse(spec)
    assert pods_asked(spec) >= 0
