"""Opening models: what is refused says which file, which tensor and what was expected."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from helpers.tiny_families import save_gemma3, save_llama, save_mistral
from helpers.tiny_models import LoadedModel
from safetensors.torch import load_file, save_file
from shiftcore.layout import Gear
from shiftruntime.errors import StartupError
from shiftruntime.layers.exchange import HeadPlan
from shiftruntime.models import gemma3
from shiftruntime.models.shapes import tensor_shapes
from shiftruntime.models.source import open_model
from shiftruntime.models.weights import layer_views, lm_head_shard, plan_arena


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    save_llama(tmp_path)
    return tmp_path


def refused(path: Path, reason: str, *words: str) -> None:
    with pytest.raises(StartupError) as refusal:
        LoadedModel.load(path, 2)
    assert refusal.value.reason == reason
    for word in words:
        assert word in refusal.value.message


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "ModelNotFound", str(tmp_path / "absent"))
    refused(tmp_path, "ModelNotFound", "config.json")


def test_folder_without_weights(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    refused(llama, "ModelNotFound", "*.safetensors")


def test_neither_gguf_nor_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x80\x02")
    refused(tmp_path / "model.bin", "ModelUnsupported", "model.bin")


def test_truncated_safetensors(llama: Path) -> None:
    file = llama / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    refused(llama, "ModelDamaged", "model.safetensors", str(size - 100), str(size))


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, struct.pack("<Q", 4) + b"[1,2", struct.pack("<Q", 2) + b"[]"])
def test_senseless_safetensors(llama: Path, content: bytes) -> None:
    (llama / "model.safetensors").write_bytes(content)
    refused(llama, "ModelDamaged", "model.safetensors")


def test_missing_tensor(llama: Path) -> None:
    edit_weights(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(llama, "ModelDamaged", "model.layers.1.mlp.up_proj.weight", "(96, 48)")


def test_wrong_shape(llama: Path) -> None:
    edit_weights(llama, lambda tensors: tensors.update({"model.norm.weight": torch.ones(47)}))
    refused(llama, "ModelDamaged", "model.norm.weight", "(47,)", "(48,)")


def test_shard_named_in_index_is_missing(llama: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(llama, "ModelDamaged", "model-00001-of-00002.safetensors")


def test_weights_in_several_files(llama: Path) -> None:
    whole = LoadedModel.load(llama, 2).weights
    tensors = load_file(llama / "model.safetensors")
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, llama / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (llama / "model.safetensors").unlink()
    again = LoadedModel.load(llama, 2).weights
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def split(folder: Path, **extra: torch.Tensor) -> dict[str, Path]:
    """The weights in two files with an index; ``extra`` tensors go to the second. Returns the files by name."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: folder / f"model-{name}.safetensors" for name in ("a", "b")}
    names = sorted(tensors)
    parts = {"a": {n: tensors[n] for n in names[::2]}, "b": {n: tensors[n] for n in names[1::2]} | extra}
    for name, part in parts.items():
        save_file(part, files[name])
    weight_map = {tensor: files[name].name for name, part in parts.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return files


def test_a_tensor_in_two_files_is_refused(llama: Path) -> None:
    files = split(llama, **{"lm_head.weight": torch.ones(131, 48)})
    refused(llama, "ModelDamaged", "lm_head.weight", str(files["a"]), str(files["b"]), "remove")


def test_a_tensor_that_moved_to_another_file_of_the_index_is_found(llama: Path) -> None:
    whole = LoadedModel.load(llama, 1).weights
    files = split(llama)
    a, b = load_file(files["a"]), load_file(files["b"])
    b["lm_head.weight"] = a.pop("lm_head.weight")
    save_file(a, files["a"])
    save_file(b, files["b"])
    assert torch.equal(LoadedModel.load(llama, 1).weights["lm_head"], whole["lm_head"])


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": [1]}}'])
def test_an_index_without_a_map_is_refused(llama: Path, index: str) -> None:
    (llama / "model.safetensors.index.json").write_text(index)
    refused(llama, "ModelDamaged", "model.safetensors.index.json", "weight_map")


def test_files_that_no_index_names_are_left_alone(llama: Path) -> None:
    """Mistral's repositories carry the weights a second time, as consolidated.safetensors with other names."""
    save_file({"output.weight": torch.ones(2)}, llama / "consolidated.safetensors")
    LoadedModel.load(llama, 1)
    split(llama)
    LoadedModel.load(llama, 1)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64], ids=str)
def test_wrong_dtype(llama: Path, dtype: torch.dtype) -> None:
    """An fp8 weight without its scale would load and say nonsense."""
    edit_weights(llama, lambda tensors: tensors.update({"model.norm.weight": torch.ones(48).to(dtype)}))
    refused(llama, "ModelUnsupported", "model.norm.weight", "dtype", "BF16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_floats_of_any_width_are_converted(llama: Path, dtype: torch.dtype) -> None:
    stored = load_file(llama / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].to(dtype)
    edit_weights(llama, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight": stored}))
    assert torch.equal(LoadedModel.load(llama, 1).weights["layers.0.up"], stored.float())


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight", "model.norm.weight_scale"]
)
def test_extra_tensors_are_refused(llama: Path, name: str) -> None:
    """A bias that config.json does not announce used to be left out, and the model said something else."""
    edit_weights(llama, lambda tensors: tensors.update({name: torch.ones(48), "z": torch.ones(1)}))
    refused(llama, "ModelUnsupported", name, "and 1 more", "LlamaForCausalLM")


def test_extra_tensors_without_meaning_are_ignored(tmp_path: Path) -> None:
    save_llama(tmp_path, tie_word_embeddings=True)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].clone()
    extra = {"lm_head.weight": embedding, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    edit_weights(tmp_path, lambda tensors: tensors.update(extra))
    LoadedModel.load(tmp_path, 1)


def test_quantised_safetensors_are_refused_by_name(llama: Path) -> None:
    edit_config(llama, lambda raw: raw.update(quantization_config={"quant_method": "awq"}))
    refused(llama, "ModelUnsupported", "config.json", "awq", "GGUF")


@pytest.mark.parametrize("kind", ["linear_attention", "chunked_attention"])
def test_unknown_layer_types_are_refused(tmp_path: Path, kind: str) -> None:
    """They used to be read as full attention."""
    save_gemma3(tmp_path)
    edit_config(tmp_path, lambda raw: raw["layer_types"].__setitem__(1, kind))
    refused(tmp_path, "ModelUnsupported", f"layer type '{kind}'")


def test_a_sliding_window_means_nothing_to_llama(llama: Path) -> None:
    """It used to make every layer slide."""
    edit_config(llama, lambda raw: raw.update(sliding_window=4))
    assert open_model(llama).config.window(0) is None


def test_the_window_of_an_early_mistral_is_in_its_code(tmp_path: Path) -> None:
    save_mistral(tmp_path)
    edit_config(tmp_path, lambda raw: raw.pop("sliding_window"))
    assert open_model(tmp_path).config.window(0) == 4096
    edit_config(tmp_path, lambda raw: raw.update(sliding_window=None))
    assert open_model(tmp_path).config.window(0) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_attention_heads": 0}, "num_query_heads is 0"), ({"head_dim": "x"}, "head_dim"), ({"head_dim": 7}, "odd"),
     ({"rms_norm_eps": None}, "rms_norm_eps"), ({"hidden_act": "relu"}, "activation 'relu'"),
     ({"rope_parameters": 5}, "config.json")],
)  # fmt: skip
def test_senseless_values_are_refused(llama: Path, changes: dict[str, Any], words: str) -> None:
    edit_config(llama, lambda raw: raw.update(changes))
    with pytest.raises(StartupError) as refusal:
        open_model(llama)
    assert words in refusal.value.message


def test_unknown_architecture(llama: Path) -> None:
    edit_config(llama, lambda raw: raw.update(architectures=["MambaForCausalLM"]))
    refused(llama, "ModelUnsupported", "MambaForCausalLM", "LlamaForCausalLM", "Gemma3ForCausalLM")


def test_unknown_rope_scaling(llama: Path) -> None:
    edit_config(llama, lambda raw: raw.update(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}))
    refused(llama, "ModelUnsupported", "longrope", "llama3")


def test_config_without_a_number(llama: Path) -> None:
    edit_config(llama, lambda raw: raw.update(hidden_size="big"))
    refused(llama, "ModelDamaged", "hidden_size", "big")


def test_config_with_values_of_another_kind(llama: Path) -> None:
    edit_config(llama, lambda raw: raw.update(num_key_value_heads="four"))
    refused(llama, "ModelDamaged", "config.json")
    edit_config(llama, lambda raw: raw.update(num_key_value_heads=4, rope_parameters={"rope_type": "linear"}))
    refused(llama, "ModelDamaged", "factor")


def test_config_that_is_no_json(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    refused(llama, "ModelDamaged", "config.json")


@pytest.mark.parametrize(("ranks", "words"), [(3, "8 query heads"), (16, "8 query heads")])
def test_heads_that_do_not_divide(llama: Path, ranks: int, words: str) -> None:
    with pytest.raises(StartupError, match=words) as refusal:
        open_model(llama).config.check_layout(ranks)
    assert refusal.value.reason == "InvalidLayout"


def test_ffn_that_does_not_divide(tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=97)
    with pytest.raises(StartupError, match=r"intermediate_size \(FFN\) 97 does not divide over 2 ranks"):
        open_model(tmp_path).config.check_layout(2)


def test_older_config_names(tmp_path: Path) -> None:
    """What transformers 4 wrote: rope_theta, rope_scaling, rope_local_base_freq, sliding_window_pattern."""
    save_gemma3(tmp_path)
    expected = open_model(tmp_path).config

    def older(raw: dict[str, Any]) -> None:
        raw.pop("rope_parameters")
        raw.pop("layer_types")
        raw |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 3, "rope_scaling": None}

    edit_config(tmp_path, older)
    assert open_model(tmp_path).config == expected


def same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_shards_are_views_and_vocabulary_is_padded(llama: Path) -> None:
    model = LoadedModel.load(llama, 4)
    config = model.source.config
    layout = plan_arena(config, torch.float32, 4)
    assert model.weights["embed"].shape == (132, 48)
    assert not model.weights["embed"][131].any()
    assert same_memory(lm_head_shard(model.weights, 4, 3), model.weights["lm_head"])
    for gear in (Gear(1, 4), Gear(2, 2), Gear(4, 1)):
        for rank in range(4):
            heads = HeadPlan.of(config.heads(4), gear, rank)
            for i, layer in enumerate(layer_views(model.weights, config, gear, rank, heads)):
                for part, name in ((layer.mlp.down, "down"), (layer.attention.o, "o"), (layer.attention.k, "k")):
                    own = model.weights[f"layers.{i}.{name}"]
                    assert same_memory(part, own)
                    assert part.numel() * gear.tensor == own.numel()
    assert layout.total_bytes < 1.1 * sum(slot.num_bytes for slot in layout.slots.values())


def write_gguf(path: Path, architecture: str = "gemma3", drop: str | None = None) -> None:
    """A tiny Gemma 3 in float32, as converters write it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_uint32("gemma3.context_length", 64)
    for key, value in {
        "embedding_length": 32, "block_count": 2, "feed_forward_length": 64, "attention.head_count": 4,
        "attention.head_count_kv": 1, "attention.key_length": 8, "attention.sliding_window": 8,
    }.items():  # fmt: skip
        writer.add_uint32(f"gemma3.{key}", value)
    writer.add_float32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(40)])
    writer.add_token_types([1] * 40)
    config = gemma3.read_gguf_config(GGUF_META)
    for canonical, shape in tensor_shapes(config).items():
        name = gemma3.GGUF_FAMILY.file_name(canonical)
        if name != drop:
            writer.add_tensor(name, numpy.ones(shape, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_META = {
    "gemma3.context_length": 64, "gemma3.embedding_length": 32, "gemma3.block_count": 2,
    "gemma3.feed_forward_length": 64, "gemma3.attention.head_count": 4, "gemma3.attention.head_count_kv": 1,
    "gemma3.attention.key_length": 8, "gemma3.attention.sliding_window": 8,
    "gemma3.attention.layer_norm_rms_epsilon": 1e-6, "tokenizer.ggml.tokens": ("t",) * 40,
}  # fmt: skip


def test_gguf_as_written_by_the_gguf_package(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    model = LoadedModel.load(tmp_path / "tiny.gguf", 2)
    assert model.source.config.vocab_size == 40
    assert all(bool((tensor == 1).all()) for tensor in model.weights.values())


def test_damaged_gguf(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-5000])
    refused(file, "ModelDamaged", "tiny.gguf", "truncated")
    file.write_bytes(whole[:700])
    refused(file, "ModelDamaged", "tiny.gguf", "700 bytes")
    file.write_bytes(b"GGML" + whole[4:])
    refused(file, "ModelDamaged", "tiny.gguf", "no GGUF file")
    file.write_bytes(b"GGUF" + struct.pack("<I", 9) + whole[8:])
    refused(file, "ModelUnsupported", "version 9")


def test_gguf_of_another_architecture_or_without_a_tensor(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", architecture="mamba")
    refused(tmp_path / "other.gguf", "ModelUnsupported", "mamba", "gemma3")
    write_gguf(tmp_path / "less.gguf", drop="blk.1.ffn_up.weight")
    refused(tmp_path / "less.gguf", "ModelDamaged", "blk.1.ffn_up.weight", "(64, 32)")


def test_a_published_wrapper_of_gemma_3_takes_the_values_it_leaves_out_from_its_class() -> None:
    from shiftruntime.models.gemma3 import read_wrapper_config

    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    config = read_wrapper_config(
        {"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106], "text_config": text}
    )
    assert (config.num_query_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.sliding_window, config.attention_scale) == (262_208, 1024, 256**-0.5)
    assert (config.rope_theta, config.rope_theta_local, config.eos_ids) == (1_000_000.0, 10_000.0, (1, 106))
    assert [config.slides(i) for i in range(7)] == [True, True, True, True, True, False, True]
