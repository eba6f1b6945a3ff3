"""Where a URI says that a model is, and how one that says nothing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from shiftruntime.errors import StartupError
from shiftruntime.models.fetch import parse_uri
from shiftruntime.models.fetch.uri import HubModel, LocalModel, S3Model


@pytest.mark.parametrize(
    ("uri", "model"),
    [
        ("models/llama", LocalModel(Path("models/llama"))),
        ("file:///models/a%20b.gguf", LocalModel(Path("/models/a b.gguf"))),
        ("hf://team/tiny", HubModel("team/tiny")),
        ("hf://team/tiny-1.5@v2", HubModel("team/tiny-1.5", "v2")),
        ("hf://team/tiny@v2/q4.gguf", HubModel("team/tiny", "v2", "q4.gguf")),
        ("hf://team/tiny/q4/tiny.gguf", HubModel("team/tiny", "main", "q4/tiny.gguf")),
        ("s3://bucket/models/tiny/", S3Model("bucket", "models/tiny")),
    ],
)
def test_uris(uri: str, model: object) -> None:
    assert parse_uri(uri) == model


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("gs://bucket/x", "unknown scheme 'gs'"),
        ("hf://tiny", "hf://OWNER/NAME"),
        ("hf://team/tiny/../../x.gguf", "leaves its folder"),
        ("s3://bucket", "s3://BUCKET/PREFIX"),
        ("s3://bucket/a/../../b", "leaves its folder"),
        ("file://host/x", "three slashes"),
        ("pvc://claim/x", "give the path itself"),
    ],
)
def test_refused_uris_show_what_one_looks_like(uri: str, words: str) -> None:
    with pytest.raises(StartupError) as refused:
        parse_uri(uri)
    assert words in refused.value.message
    assert refused.value.reason == "InvalidArgument"
