"""The model on disk is not the model that was meant."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from helpers.engines import engine_options
from helpers.failures import bit_flips
from helpers.tiny_models import save_llama
from shiftruntime.engine.client import EngineClient, EngineFailed
from shiftruntime.engine.messages import PhaseUpdate
from shiftruntime.models.manifest import write_manifest


def test_200_flipped_bits_are_seen() -> None:
    outcome = bit_flips.run(200, seed=20261121)
    print(outcome)
    assert outcome.injected == 200
    assert not outcome.bad


async def start(model: Path, **changes: Any) -> list[PhaseUpdate]:
    """The phases of a start; raises EngineFailed."""
    phases: list[PhaseUpdate] = []
    client = EngineClient(engine_options(model, ranks=1, max_model_len=64, **changes))
    try:
        await client.start(phases.append)
        return phases
    except EngineFailed as failure:
        assert "kv" not in {phase.name for phase in phases}, "it must not come near serving"
        raise failure
    finally:
        await client.stop(5.0)


@pytest.mark.ranks
async def test_a_model_is_held_against_its_manifest_before_it_serves(tmp_path: Path) -> None:
    await asyncio.to_thread(save_llama, tmp_path)
    weights = tmp_path / "model.safetensors"
    with pytest.raises(EngineFailed, match="SHA256SUMS does not exist") as caught:
        await start(tmp_path, require_manifest=True)
    assert caught.value.reason == "ModelDamaged"
    manifest = write_manifest(tmp_path)
    phases = await start(tmp_path, require_manifest=True)
    (verified,) = [phase for phase in phases if phase.name == "verify" and phase.done]
    total = sum(manifest.file(name).stat().st_size for name, _ in manifest.files)
    assert (verified.done_bytes, verified.total_bytes) == (total, total)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(EngineFailed, match=r"model\.safetensors is damaged: its SHA-256 is") as caught:
        await start(tmp_path)
    assert caught.value.reason == "ModelDamaged"
