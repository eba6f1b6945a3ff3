"""Models from a hub on loopback: what is fetched, that it resumes, and how it is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.fetched_models import INDEX, MODEL, ORIGINAL, OTHERS, SHARDED, WEIGHTS, Progress, assert_is_model
from helpers.loopback_hub import Hub, loopback_hub
from shiftruntime.errors import StartupError
from shiftruntime.models.fetch import Stopped, cached_model, fetch_model
from shiftruntime.models.manifest import verify


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


def test_what_was_fetched_is_found_without_asking(hub: Hub, tmp_path: Path) -> None:
    first = fetch_model("hf://team/tiny", tmp_path)
    hub.down = True
    assert cached_model("hf://team/tiny", tmp_path) == first
    with pytest.raises(StartupError, match=r"is not in .* and the hub is not to be asked; fetch it first") as refused:
        cached_model("hf://team/tiny@v2", tmp_path)
    assert refused.value.reason == "FetchFailed"


def test_a_fetch_that_broke_off_is_not_served(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = 0
    stop = threading.Event()
    with pytest.raises(Stopped):
        fetch_model("hf://team/tiny", tmp_path, lambda done, total: stop.set(), stop)
    with pytest.raises(StartupError, match="fetch it first"):
        cached_model("hf://team/tiny", tmp_path)


def test_an_address_that_opens_a_file_is_not_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("403 for https://cdn.example/file?X-Amz-Signature=abc&Expires=9 (denied)")

    monkeypatch.setattr("shiftruntime.models.fetch.hub.hf_hub_download", fails)
    with pytest.raises(StartupError) as refused:
        fetch_model("hf://team/tiny", tmp_path)
    assert "403 for https://cdn.example/file?… (denied)" in refused.value.message
    assert "abc" not in refused.value.message


def test_a_model_above_the_limit_is_refused_before_it_is_fetched(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="and its cache may hold 1000000; raise that limit"):
        fetch_model("hf://team/tiny", tmp_path, limit_bytes=1_000_000)
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


def test_weights_that_the_index_does_not_name_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.files = SHARDED | ORIGINAL
    progress = Progress()
    assert_is_model(fetch_model("hf://team/tiny", tmp_path, progress), SHARDED)
    assert not [asked for asked in hub.requests if "consolidated" in asked]
    assert progress.seen[-1][1] == sum(map(len, SHARDED.values()))
    hub.requests.clear()
    fetch_model("hf://team/tiny", tmp_path)
    assert hub.requests == []


def test_weights_beside_the_one_file_that_is_read_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.files = MODEL | ORIGINAL
    assert_is_model(fetch_model("hf://team/tiny", tmp_path))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"{", "is no JSON"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": {"a": "model-3-of-3.safetensors"}}', "model-3-of-3.safetensors is named in"),
    ],
)
def test_an_index_that_names_no_weights_is_refused_before_any_is_fetched(
    hub: Hub, tmp_path: Path, index: bytes, words: str
) -> None:
    hub.files = SHARDED | {INDEX: index}
    with pytest.raises(StartupError) as refused:
        fetch_model("hf://team/tiny", tmp_path)
    assert words in refused.value.message
    assert refused.value.reason == "ModelDamaged"
    assert hub.requests == [f"GET {INDEX}"]


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


def damaged_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the hub sends, other bytes arrive."""

    def download(repo: str, name: str, *, local_dir: Path, **_: object) -> None:
        (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes(b"damaged")

    monkeypatch.setattr("shiftruntime.models.fetch.hub.hf_hub_download", download)


@pytest.mark.parametrize("name", ["model.safetensors", "q4/tiny.gguf"])
def test_bytes_that_are_not_what_the_hub_knows_are_refused_in_any_folder(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub.files = {"config.json": b"{}", name: WEIGHTS}
    damaged_downloads(monkeypatch)
    with pytest.raises(StartupError, match=f"{name} has SHA-256") as refused:
        fetch_model("hf://team/tiny", tmp_path)
    assert refused.value.reason == "ModelDamaged"


def test_a_kill_while_sums_are_compared_leaves_no_manifest(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say at the next start that what came is whole."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    damaged_downloads(monkeypatch)
    monkeypatch.setattr("shiftruntime.models.fetch.hub.model_damaged", killed)
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch_model("hf://team/tiny", tmp_path)
    assert not list(tmp_path.rglob("SHA256SUMS"))


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
