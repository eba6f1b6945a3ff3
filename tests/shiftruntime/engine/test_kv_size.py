"""The KV pool is what memory holds beside weights and activations, measured on real ranks."""

from __future__ import annotations

import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers.engines import engine_options
from shiftruntime.engine import startup as startup_module
from shiftruntime.engine.memory import peak_growth_bytes, reset_peak
from shiftruntime.engine.ranks import RankGroup
from shiftruntime.engine.startup import Startup
from shiftruntime.errors import StartupError

from .conftest import TinyLlama

MIB = 1 << 20
BLOCK_BYTES = 1536  # per rank of two
SHARE = 0.8


@contextmanager
def starting(llama: TinyLlama, **changes: Any) -> Iterator[Startup]:
    options = engine_options(
        llama.path, **({"kv_memory_bytes": None, "max_num_seqs": 64, "max_model_len": 512} | changes)
    )
    with selectors.DefaultSelector() as selector:
        group = RankGroup(options.ranks, selector, stall_seconds=20.0)
        try:
            yield Startup(options, group, lambda _: None)
        finally:
            group.close()


@pytest.mark.ranks
def test_the_pool_is_what_is_free_beside_the_largest_step(llama: TinyLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_module, "available_bytes", lambda: 10 * MIB)
    monkeypatch.setattr(startup_module, "peak_growth_bytes", lambda _: MIB)
    with starting(llama) as startup:
        blocks = startup.run().num_blocks
    assert blocks == int((10 - 2) * MIB * SHARE) // 2 // BLOCK_BYTES


@pytest.mark.ranks
def test_activations_that_leave_no_room_for_one_sequence_are_refused(
    llama: TinyLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup_module, "available_bytes", lambda: 10 * MIB)
    monkeypatch.setattr(startup_module, "peak_growth_bytes", lambda _: 5 * MIB - 100_000)
    with starting(llama) as startup, pytest.raises(StartupError, match="less than one sequence of 512") as caught:
        startup.run()
    assert caught.value.reason == "OutOfMemory"


@pytest.mark.ranks
def test_plenty_of_memory_is_bounded_by_what_the_limits_can_use(llama: TinyLlama) -> None:
    with starting(llama, max_num_seqs=3) as startup:
        assert startup.run().num_blocks == 3 * 512 // 4


def test_the_peak_of_a_process_is_seen_after_it_has_passed() -> None:
    code = "import sys\nfor line in sys.stdin:\n  x = bytearray(int(line)); del x; print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for size, bounds in ((200 * MIB, (150, 250)), (50 * MIB, (30, 80))):  # the second below the first: reset works
            reset_peak(child.pid)
            child.stdin.write(b"%d\n" % size)
            child.stdin.flush()
            child.stdout.readline()
            assert bounds[0] < peak_growth_bytes(child.pid) / MIB < bounds[1]
        child.stdin.close()
        child.wait(10)
    assert peak_growth_bytes(child.pid) == 0
