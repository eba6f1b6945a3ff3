"""Shared names: well formed, distinct, and the same wherever they are said twice."""

from __future__ import annotations

import re

import pytest
import yaml
from helpers.chart import ROOT
from shiftcore import gears, policy
from shiftoperator.spec.engine import KV_CACHE_DTYPES
from shiftoperator.spec.model import QUANTIZATIONS
from shiftprotos import contract
from shiftruntime.metrics import OUTCOMES

NAMES = {name: value for name, value in vars(contract).items() if name.isupper()}
METRICS = {name: value for name, value in NAMES.items() if name.startswith("METRIC_")}
REASONS = {name: value for name, value in NAMES.items() if name.startswith("REASON_")}
LABELS = {name: value for name, value in NAMES.items() if name.startswith(("LABEL_", "ANNOTATION_"))}


@pytest.mark.parametrize("kind", ["METRIC_", "REASON_", "CONDITION_", "ENV_", "LABEL_", "ANNOTATION_"])
def test_no_name_is_given_twice(kind):
    values = [value for name, value in NAMES.items() if name.startswith(kind) and isinstance(value, str)]
    assert len(values) == len(set(values)) > 0


@pytest.mark.parametrize(("name", "value"), METRICS.items())
def test_metrics_follow_prometheus(name, value):
    assert re.fullmatch(r"shift_[a-z][a-z0-9_]*", value)
    assert not value.endswith(("_sum", "_count", "_bucket", "_created"))


@pytest.mark.parametrize(("name", "value"), [*REASONS.items(), *((c, c) for c in contract.CONDITIONS)])
def test_reasons_and_conditions_follow_kubernetes(name, value):
    assert re.fullmatch(r"[A-Z][A-Za-z]{1,62}", value)


@pytest.mark.parametrize(("name", "value"), LABELS.items())
def test_labels_are_valid_keys(name, value):
    prefix, _, key = value.rpartition("/")
    assert re.fullmatch(r"[a-z0-9.-]{1,253}", prefix)
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", key)


def test_conditions_are_listed_once_and_completely():
    named = {value for name, value in NAMES.items() if name.startswith("CONDITION_")}
    assert set(contract.CONDITIONS) == named
    assert len(contract.CONDITIONS) == len(named)


def test_ports_are_distinct_and_need_no_privilege():
    ports = [value for name, value in NAMES.items() if name.endswith("_PORT")]
    assert len(ports) == len(set(ports)) == 4
    assert all(1024 <= port <= 65535 for port in ports)


def test_metadata_keys_are_lower_case():
    """gRPC refuses any other."""
    assert contract.AUTHORIZATION_METADATA.lower() == contract.AUTHORIZATION_METADATA


def test_bounds_are_those_of_the_core():
    assert (contract.MIN_THRESHOLD_TOKENS, contract.MAX_THRESHOLD_TOKENS) == (
        policy.MIN_THRESHOLD_TOKENS,
        policy.MAX_THRESHOLD_TOKENS,
    )
    assert contract.DEFAULT_THRESHOLD_TOKENS == gears.DEFAULT_THRESHOLD_TOKENS


def test_the_crd_has_the_bounds_of_the_command_line():
    crd = yaml.safe_load((ROOT / "charts" / "shift" / "crds" / "shiftdeployments.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    engine = schema["engine"]["properties"]
    percent = engine["gpuMemoryPercent"]
    assert (percent["minimum"], percent["maximum"]) == (contract.MIN_KV_MEMORY_PERCENT, contract.MAX_KV_MEMORY_PERCENT)
    assert tuple(engine["kvCacheDtype"]["enum"]) == KV_CACHE_DTYPES
    assert tuple(schema["model"]["properties"]["quantization"]["enum"]) == QUANTIZATIONS


def test_outcomes_are_label_values():
    assert len(OUTCOMES) == len(set(OUTCOMES))
    assert all(outcome.islower() for outcome in OUTCOMES)
