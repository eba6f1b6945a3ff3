"""What a runtime writes of its measurements, and what a resource may ask for, is what the simulator reads."""

from __future__ import annotations

from pathlib import Path

import yaml
from google.protobuf.json_format import MessageToJson
from shiftcore.costs import CostCurve, CostPoint
from shiftcore.layout import Gear
from shiftoperator.spec.engine import KV_CACHE_DTYPES
from shiftprotos import contract
from shiftprotos.v1 import control_pb2, inference_pb2
from shiftruntime.engine import calibration_file
from shiftruntime.engine.calibration_file import Provenance
from shiftruntime.engine.options import EngineOptions
from shiftsim import deployment, left_out, planning
from shiftsim.executor import measured

POINTS = (CostPoint(1, 0.004, 0.0001, 5), CostPoint(2048, 0.9, 0.01, 3))
COSTS = {Gear(1, 2): CostCurve(POINTS, 3e-7), Gear(2, 1): CostCurve(POINTS[:1])}


def test_the_simulator_reads_a_calibration_file_of_the_runtime(tmp_path: Path) -> None:
    provenance = Provenance(
        model="0123", dtype="bfloat16", exact=False, ranks=2, base_gear="sp2", max_num_seqs=64, max_batched_tokens=2048,
        max_model_len=4096, block_size=16, device="cpu", processor="any", instruction_sets=(), cores=2, torch="2.11",
        runtime="0.1.0",
    )  # fmt: skip
    path = tmp_path / "calibration.json"
    calibration_file.write(path, provenance, COSTS)
    assert measured.read(path) == measured.Measurement(Gear(2, 1), COSTS, 64, 2048, 4096)


def test_the_simulator_reads_an_answer_of_get_state(tmp_path: Path) -> None:
    point = control_pb2.CostPoint(tokens=1, median_seconds=0.004, spread_seconds=0.0001, samples=5)
    gears = [control_pb2.Gear(name=name, costs=[point], steps=1 << 40) for name in ("tp2", "sp2")]
    load = inference_pb2.Load(max_running_requests=64, kv_blocks_total=300)
    answer = control_pb2.GetStateResponse(gears=gears, base_gear="sp2", load=load)
    for named_as_in_proto in (True, False):
        path = tmp_path / "state.json"
        path.write_text(MessageToJson(answer, preserving_proto_field_name=named_as_in_proto))
        found = measured.read(path)
        assert found.costs == {gear: CostCurve(POINTS[:1]) for gear in COSTS}
        assert (found.base, found.max_num_seqs) == (Gear(2, 1), 64)
        assert found.kv_tokens == 300 * EngineOptions(model="m", ranks=1, base_gear=Gear(1, 1)).block_size


def test_what_if_runs_pods_as_the_runtime_does_by_default() -> None:
    options = EngineOptions(model="m", ranks=1, base_gear=Gear(1, 1))
    assert (options.max_num_seqs, options.max_batched_tokens, options.kv_memory_percent) == (
        planning.POD_MAX_NUM_SEQS,
        planning.POD_MAX_BATCHED_TOKENS,
        planning.POD_KV_MEMORY_PERCENT,
    )


def test_what_if_allows_what_the_operator_does() -> None:
    assert (contract.MIN_KV_MEMORY_PERCENT, contract.MAX_KV_MEMORY_PERCENT) == deployment.KV_MEMORY_PERCENT
    assert deployment.KV_CACHE_DTYPES == KV_CACHE_DTYPES


def test_fields_that_what_if_knows_are_fields_of_the_resource() -> None:
    crd = yaml.safe_load((Path(__file__).parents[2] / "charts/shift/crds/shiftdeployments.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    fields = {f"{section}.{name}" for section, content in spec.items() for name in content.get("properties", ())}
    simulated = {f"{section}.{name}" for section, names in left_out.SIMULATED.items() for name in names}
    assert simulated <= fields
    assert set(left_out.INSTEAD) <= fields | set(spec)
    assert not simulated & set(left_out.INSTEAD)
