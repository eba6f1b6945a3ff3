"""The files of a small model as a hub or a bucket holds them, and what must arrive of them."""

from __future__ import annotations

from pathlib import Path

from shiftruntime.models.manifest import read_manifest, verify

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
MODEL = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}
OTHERS = {
    "pytorch_model.bin": b"pickle",
    "modeling_tiny.py": b"import os",
    "original/consolidated.safetensors": b"not this",
    ".gitattributes": b"x",
}

# As published by some: the index names the shards, and the weights that they were converted from lie beside them.
INDEX = "model.safetensors.index.json"
SHARDED = {
    "config.json": MODEL["config.json"],
    INDEX: b'{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}',
    "model-1-of-2.safetensors": WEIGHTS,
    "model-2-of-2.safetensors": WEIGHTS[::-1],
}
ORIGINAL = {"consolidated.safetensors": WEIGHTS * 2}


class Progress:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def assert_is_model(path: Path, model: dict[str, bytes] = MODEL) -> None:
    """The files of the model and its manifest, and nothing that is not read or could hold code."""
    for name, content in model.items():
        assert (path / name).read_bytes() == content
    manifest = read_manifest(path)
    assert manifest is not None
    assert {name for name, _ in manifest.files} == set(model)
    assert verify(path, required=True)
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert not names & (set(OTHERS) | set(ORIGINAL))
