"""What a model advises for sampling is read with its key and value in every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import transformers
from shiftruntime.errors import StartupError
from shiftruntime.models.generation_config import GenerationDefaults, load_generation_defaults


def folder_with(folder: Path, text: str) -> Path:
    (folder / "generation_config.json").write_text(text)
    return folder


def test_a_folder_without_the_file_says_nothing(tmp_path: Path) -> None:
    assert load_generation_defaults(tmp_path) == GenerationDefaults()


def test_what_transformers_writes(tmp_path: Path) -> None:
    transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.05, max_new_tokens=64,
        eos_token_id=[151645, 151643], bos_token_id=3, pad_token_id=4, stop_strings=["User:", "\n\n"],
    ).save_pretrained(tmp_path)  # fmt: skip
    assert load_generation_defaults(tmp_path) == GenerationDefaults(
        0.6, 0.95, 20, 0.1, 1.05, 64, (151645, 151643), ("User:", "\n\n")
    )


def test_single_values_null_and_unknown_keys(tmp_path: Path) -> None:
    text = (
        '{"eos_token_id": 7, "stop_strings": "END", "temperature": null, "cache_implementation": "hybrid", "top_k": -1}'
    )
    assert load_generation_defaults(folder_with(tmp_path, text)) == GenerationDefaults(
        top_k=0, eos_ids=(7,), stop_strings=("END",)
    )


def test_a_model_that_is_not_to_be_sampled_is_greedy(tmp_path: Path) -> None:
    defaults = load_generation_defaults(folder_with(tmp_path, '{"do_sample": false, "temperature": 0.7}'))
    assert defaults.temperature == 0.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1), ("temperature", "warm"), ("temperature", True), ("temperature", float("inf")),
        ("temperature", float("nan")), ("top_p", 0), ("top_p", 1.01), ("top_k", 2.5), ("top_k", -2), ("min_p", -1),
        ("repetition_penalty", 0), ("max_new_tokens", 0), ("eos_token_id", -1), ("eos_token_id", [1, "2"]),
        ("eos_token_id", "</s>"), ("stop_strings", [""]), ("stop_strings", 5), ("do_sample", "yes"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_key_and_value(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(StartupError) as refusal:
        load_generation_defaults(folder_with(tmp_path, json.dumps({key: value})))
    assert refusal.value.reason == "ModelDamaged"
    for word in ("generation_config.json", key, repr(value), "expected"):
        assert word in refusal.value.message


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_file_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"generation_config\.json"):
        load_generation_defaults(folder_with(tmp_path, text))


def test_a_gguf_names_them_in_its_header(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_float32("general.sampling.temp", 0.5)
    writer.add_int32("general.sampling.top_k", 40)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 9)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert load_generation_defaults(tmp_path / "m.gguf") == GenerationDefaults(temperature=0.5, top_k=40, eos_ids=(9,))


def test_does_not_import_torch() -> None:
    code = "import sys, shiftruntime.models.generation_config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
