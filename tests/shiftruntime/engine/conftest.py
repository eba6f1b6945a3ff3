"""One tiny model for all engines; starting an engine costs seconds, so tests share one where they can."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import transformers
from helpers.tiny_models import save_llama


class TinyLlama(NamedTuple):
    path: Path
    oracle: transformers.PreTrainedModel


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyLlama:
    path = tmp_path_factory.mktemp("llama")
    return TinyLlama(path, save_llama(path, max_position_embeddings=512))
