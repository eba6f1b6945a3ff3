"""Models from a hub and a bucket on loopback: what is fetched, that it resumes, and how it is refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from helpers.loopback_hub import Hub, loopback_hub
from moto.server import ThreadedMotoServer
from obstore.exceptions import GenericError
from shiftruntime.errors import StartupError
from shiftruntime.models.fetch import Stopped, fetch_model, parse_uri
from shiftruntime.models.fetch.uri import HubModel, LocalModel, S3Model
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


class Progress:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def assert_is_model(path: Path) -> None:
    """The files of the model and its manifest, and nothing that could hold code."""
    for name, content in MODEL.items():
        assert (path / name).read_bytes() == content
    manifest = read_manifest(path)
    assert manifest is not None
    assert {name for name, _ in manifest.files} == set(MODEL)
    assert verify(path, required=True)
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert not names & set(OTHERS)


# --- hub --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with loopback_hub(MODEL | OTHERS) as hub:
        # The library reads its environment when it is imported.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", hub.endpoint, raising=False)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint, raising=False)
        yield hub


def test_a_repository_becomes_a_folder_with_a_manifest(hub: Hub, tmp_path: Path) -> None:
    progress = Progress()
    path = fetch_model("hf://team/tiny", tmp_path, progress)
    assert_is_model(path)
    total = sum(map(len, MODEL.values()))
    assert progress.seen[-1] == (total, total)
    assert all(a <= b for a, b in zip(progress.seen, progress.seen[1:], strict=False))
    assert {name.split()[1] for name in hub.requests} == set(MODEL)


def test_a_second_start_downloads_nothing(hub: Hub, tmp_path: Path) -> None:
    first = fetch_model("hf://team/tiny", tmp_path)
    hub.requests.clear()
    assert fetch_model("hf://team/tiny@main", tmp_path) == first
    assert hub.requests == []


def test_a_revision_that_moved_gets_a_folder_of_its_own(hub: Hub, tmp_path: Path) -> None:
    first = fetch_model("hf://team/tiny", tmp_path)
    hub.commit, hub.files["tokenizer.json"] = "b" * 40, b'{"new": 1}'
    second = fetch_model("hf://team/tiny", tmp_path)
    assert second != first
    assert (first / "tokenizer.json").read_bytes() == b"{}"
    assert (second / "tokenizer.json").read_bytes() == b'{"new": 1}'


def test_a_broken_download_resumes(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64 << 10)
    hub.cut_after = 300_000
    assert_is_model(fetch_model("hf://team/tiny", tmp_path))
    assert any(" from " in asked for asked in hub.requests), hub.requests


def test_a_hub_that_is_down_does_not_stop_what_was_fetched(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = fetch_model("hf://team/tiny", tmp_path)
    hub.down = True
    assert fetch_model("hf://team/tiny", tmp_path) == path
    assert "as it was fetched last" in caplog.text
    with pytest.raises(StartupError) as refused:
        fetch_model("hf://team/tiny", tmp_path / "elsewhere")
    assert refused.value.reason == "FetchFailed"


def test_a_hub_that_is_down_does_not_stop_the_only_gguf_file(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"q4.gguf": WEIGHTS}
    path = fetch_model("hf://team/tiny", tmp_path)
    hub.down = True
    assert fetch_model("hf://team/tiny", tmp_path) == path
    assert path.name == "q4.gguf"


def test_a_download_that_ended_after_the_sums_of_a_repository_is_not_taken_for_whole(hub: Hub, tmp_path: Path) -> None:
    hub.files["SHA256SUMS"] = b"not the form of coreutils"
    stop = threading.Event()
    with pytest.raises(Stopped):
        fetch_model("hf://team/tiny", tmp_path, lambda done, _: stop.set() if done else None, stop)
    assert_is_model(fetch_model("hf://team/tiny", tmp_path))


def test_a_commit_that_is_a_path_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.commit = "../../elsewhere"
    with pytest.raises(StartupError, match=r"'\.\./\.\./elsewhere' as its commit"):
        fetch_model("hf://team/tiny", tmp_path)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hf://team/other", "HF_TOKEN"),
        ("hf://team/tiny@v9", "no revision 'v9'"),
        ("hf://team/tiny/q4.gguf", "has no file q4.gguf"),
    ],
)
def test_what_is_not_there_is_named(hub: Hub, tmp_path: Path, uri: str, words: str) -> None:
    with pytest.raises(StartupError) as refused:
        fetch_model(uri, tmp_path)
    assert words in refused.value.message
    assert refused.value.reason == "ModelNotFound"


def test_a_repository_of_pickles_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(StartupError, match=r"files that can hold code are not fetched \(there are \.bin"):
        fetch_model("hf://team/tiny", tmp_path)


def test_one_of_several_gguf_files_must_be_named(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"q4.gguf": WEIGHTS, "q8.gguf": WEIGHTS[::-1]}
    with pytest.raises(StartupError, match=r"name one of them: q4\.gguf, q8\.gguf"):
        fetch_model("hf://team/tiny", tmp_path)
    path = fetch_model("hf://team/tiny/q8.gguf", tmp_path)
    assert (path.name, path.read_bytes()) == ("q8.gguf", WEIGHTS[::-1])
    assert verify(path, required=True)


def test_a_fetch_stops_when_it_should(hub: Hub, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        fetch_model("hf://team/tiny", tmp_path, stop=stop)


def test_a_hub_that_fails_is_not_tried_again_after_the_end(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, tries = threading.Event(), []

    def fails(*_: object, **__: object) -> None:
        tries.append(stop.set())
        raise OSError("reset")

    monkeypatch.setattr("shiftruntime.models.fetch.hub.hf_hub_download", fails)
    with pytest.raises(Stopped):
        fetch_model("hf://team/tiny", tmp_path, stop=stop)
    assert len(tries) == 1


# --- bucket -----------------------------------------------------------------------------------------------------------


class Bucket:
    def __init__(self, endpoint: str) -> None:
        self.client = boto3.client("s3", endpoint_url=endpoint)
        self.client.create_bucket(Bucket="models")
        self.put(MODEL | OTHERS)

    def put(self, files: dict[str, bytes], prefix: str = "team/tiny") -> None:
        for name, content in files.items():
            self.client.put_object(Bucket="models", Key=f"{prefix}/{name}", Body=content)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    try:
        yield Bucket(values["AWS_ENDPOINT_URL"])
    finally:
        server.stop()


def test_a_prefix_becomes_a_folder_with_a_manifest(bucket: Bucket, tmp_path: Path) -> None:
    progress = Progress()
    path = fetch_model("s3://models/team/tiny", tmp_path, progress)
    assert_is_model(path)
    total = sum(map(len, MODEL.values()))
    assert progress.seen[-1] == (total, total)


def test_only_what_changed_in_the_bucket_is_fetched_anew(bucket: Bucket, tmp_path: Path) -> None:
    path = fetch_model("s3://models/team/tiny", tmp_path)
    before = (path / "model.safetensors").stat()
    bucket.put({"tokenizer.json": b'{"new": 1}'})
    assert fetch_model("s3://models/team/tiny", tmp_path) == path
    assert (path / "tokenizer.json").read_bytes() == b'{"new": 1}'
    assert (path / "model.safetensors").stat().st_ino == before.st_ino
    assert verify(path, required=True)


def test_a_bucket_that_fails_is_not_tried_again_after_the_end(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, tries = threading.Event(), []

    def fails(*_: object, **__: object) -> None:
        tries.append(stop.set())
        raise GenericError("reset")

    monkeypatch.setattr("obstore.get", fails)
    with pytest.raises(Stopped):
        fetch_model("s3://models/team/tiny", tmp_path, stop=stop)
    assert len(tries) == 1


def stop_within_the_weights(uri: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes of them had come."""
    monkeypatch.setattr("shiftruntime.models.fetch.s3._PIECE_BYTES", 64 << 10)
    stop = threading.Event()
    with pytest.raises(Stopped):
        fetch_model(uri, cache, lambda done, _: stop.set() if done > 200_000 else None, stop)
    (partial,) = (file for file in cache.rglob("*.partial") if file.name.startswith(("model.", "q4.")))
    assert 0 < partial.stat().st_size < len(WEIGHTS)
    return partial.stat().st_size


def test_a_stopped_download_from_a_bucket_resumes(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = stop_within_the_weights("s3://models/team/tiny", tmp_path, monkeypatch)
    progress = Progress()
    assert_is_model(fetch_model("s3://models/team/tiny", tmp_path, progress))
    assert min(done for done, _ in progress.seen if done) > fetched


def test_a_damaged_piece_of_a_resumed_file_is_not_served(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that changed between two tries is fetched from its beginning."""
    stop_within_the_weights("s3://models/team/tiny", tmp_path, monkeypatch)
    bucket.put({"model.safetensors": WEIGHTS[::-1]})
    path = fetch_model("s3://models/team/tiny", tmp_path)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS[::-1]


UPDATE = MODEL | {"config.json": b'{"new": 1}', "model.safetensors": WEIGHTS[::-1], "tokenizer.json": b'{"new": 2}'}


def test_an_update_that_was_stopped_never_mixes_two_models(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_model("s3://models/team/tiny", tmp_path)
    bucket.put(UPDATE)
    stop_within_the_weights("s3://models/team/tiny", tmp_path, monkeypatch)
    path = fetch_model("s3://models/team/tiny", tmp_path)
    assert {name: (path / name).read_bytes() for name in UPDATE} == UPDATE
    assert verify(path, required=True)


def test_an_update_that_was_stopped_and_taken_back_leaves_the_earlier_model(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_model("s3://models/team/tiny", tmp_path)
    bucket.put(UPDATE)
    stop_within_the_weights("s3://models/team/tiny", tmp_path, monkeypatch)
    bucket.put(MODEL)
    assert_is_model(fetch_model("s3://models/team/tiny", tmp_path))


def test_an_update_of_one_gguf_file_that_was_stopped_is_fetched_at_the_next_start(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put({"q4.gguf": WEIGHTS}, prefix="ggufs")
    fetch_model("s3://models/ggufs/q4.gguf", tmp_path)
    bucket.put({"q4.gguf": WEIGHTS[::-1]}, prefix="ggufs")
    stop_within_the_weights("s3://models/ggufs/q4.gguf", tmp_path, monkeypatch)
    path = fetch_model("s3://models/ggufs/q4.gguf", tmp_path)
    assert path.read_bytes() == WEIGHTS[::-1]
    assert verify(path, required=True)


def test_weights_whose_tag_could_not_be_written_down_are_fetched_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between putting a file into its place and noting it, then the bucket goes back to what it had."""
    fetch_model("s3://models/team/tiny", tmp_path)
    bucket.put(UPDATE)
    replace = Path.replace

    def killed(self: Path, target: Path) -> None:
        replace(self, target)
        if target.name == "model.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch_model("s3://models/team/tiny", tmp_path)
    monkeypatch.setattr(Path, "replace", replace)
    bucket.put(MODEL)
    assert_is_model(fetch_model("s3://models/team/tiny", tmp_path))


def test_a_manifest_in_the_bucket_is_kept(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"SHA256SUMS": b"0" * 64 + b"  model.safetensors\n"})
    path = fetch_model("s3://models/team/tiny", tmp_path)
    with pytest.raises(StartupError, match="ModelDamaged"):
        verify(path)


def sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


def test_a_manifest_in_the_bucket_may_list_what_is_not_fetched(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"SHA256SUMS": sums(MODEL | OTHERS | {"README.md": b"about"})})
    for _ in range(2):
        path = fetch_model("s3://models/team/tiny", tmp_path)
        assert verify(path, required=True)
    (path / "config.json").write_bytes(b"{}")
    with pytest.raises(StartupError, match="ModelDamaged"):
        verify(path)


def test_a_file_that_changed_beside_the_manifest_of_the_bucket_is_held_against_it(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.put({"SHA256SUMS": sums(MODEL)})
    fetch_model("s3://models/team/tiny", tmp_path)
    bucket.put({"tokenizer.json": b'{"new": 1}'})
    path = fetch_model("s3://models/team/tiny", tmp_path)
    with pytest.raises(StartupError, match="ModelDamaged"):
        verify(path, required=True)


def test_weights_that_left_the_bucket_are_not_served_on(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"model.safetensors.index.json": b"{}"})
    path = fetch_model("s3://models/team/tiny", tmp_path)
    assert (path / "model.safetensors.index.json").exists()
    bucket.client.delete_object(Bucket="models", Key="team/tiny/model.safetensors.index.json")
    assert_is_model(fetch_model("s3://models/team/tiny", tmp_path))
    assert not (path / "model.safetensors.index.json").exists()


def test_one_gguf_file_of_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"q4.gguf": WEIGHTS}, prefix="ggufs")
    path = fetch_model("s3://models/ggufs/q4.gguf", tmp_path)
    assert path.read_bytes() == WEIGHTS
    assert verify(path, required=True)


@pytest.mark.parametrize("uri", ["s3://models/nothing", "s3://no-bucket/tiny"])
def test_a_bucket_or_prefix_that_is_not_there_is_named(bucket: Bucket, tmp_path: Path, uri: str) -> None:
    with pytest.raises(StartupError) as refused:
        fetch_model(uri, tmp_path)
    assert uri in refused.value.message
    assert refused.value.reason == "ModelNotFound"


def test_an_endpoint_that_is_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(StartupError) as refused:
        fetch_model("s3://models/team/tiny", tmp_path)
    assert refused.value.reason == "FetchFailed"
