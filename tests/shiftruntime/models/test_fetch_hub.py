"""Models from a hub on loopback: what is fetched, that it resumes, and how it is refused."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.fetched_models import INDEX, MODEL, ORIGINAL, OTHERS, SHARDED, WEIGHTS, Progress, assert_is_model
from helpers.loopback_hub import Hub, loopback_hub
from huggingface_hub import hf_hub_download
from shiftruntime.errors import StartupError
from shiftruntime.models.fetch import Stopped, cached_model, fetch_model
from shiftruntime.models.fetch.hub import _pointer
from shiftruntime.models.fetch.uri import HubModel
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
        monkeypatch.setattr("shiftruntime.models.fetch.hub._PAUSE_SECONDS", 0.0)
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


def test_a_model_that_is_whole_starts_on_a_full_volume(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch_model("hf://team/tiny", tmp_path)

    def no_room(path: Path, text: str) -> int:
        raise OSError(errno.ENOSPC, "full", str(path))

    monkeypatch.setattr("pathlib.Path.write_text", no_room)
    assert fetch_model("hf://team/tiny", tmp_path) == path


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


@contextmanager
def paused_download(hub: Hub, uri: str, cache: Path) -> Iterator[Future[Path]]:
    """Another process's, so to say, which stands in the middle of the weights."""
    hub.pause = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        download = pool.submit(fetch_model, uri, cache)
        deadline = time.monotonic() + 60
        while "GET model.safetensors" not in hub.requests:
            assert time.monotonic() < deadline, "the download did not begin"
            time.sleep(0.01)
        try:
            yield download
        finally:
            hub.pause.set()


def soon(get: Callable[[], Path]) -> Path:
    """Its answer, which may not wait for a download that stands still."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(get).result(timeout=30)


def test_a_restart_does_not_wait_for_the_download_of_another_revision(hub: Hub, tmp_path: Path) -> None:
    first = fetch_model("hf://team/tiny", tmp_path)
    hub.requests.clear()
    hub.commit, hub.files["tokenizer.json"] = "b" * 40, b'{"new": 1}'
    with paused_download(hub, "hf://team/tiny@main", tmp_path) as download:
        assert soon(lambda: cached_model("hf://team/tiny", tmp_path)) == first
        hub.down = True
        assert soon(lambda: fetch_model("hf://team/tiny", tmp_path)) == first
        assert not download.done()
        hub.down = False
    assert download.result() == first.with_name("b" * 40)


def test_a_revision_that_is_there_is_taken_while_another_one_is_fetched(hub: Hub, tmp_path: Path) -> None:
    first = fetch_model("hf://team/tiny", tmp_path)
    hub.requests.clear()
    hub.commit, hub.files["tokenizer.json"] = "b" * 40, b'{"new": 1}'
    with paused_download(hub, "hf://team/tiny@main", tmp_path) as download:
        hub.commit = "a" * 40
        assert soon(lambda: fetch_model("hf://team/tiny", tmp_path)) == first
        assert not download.done()


def test_two_that_fetch_one_revision_at_once_fetch_it_once(hub: Hub, tmp_path: Path) -> None:
    with paused_download(hub, "hf://team/tiny@main", tmp_path) as first, ThreadPoolExecutor(1) as pool:
        second = pool.submit(fetch_model, "hf://team/tiny", tmp_path)
        with pytest.raises(TimeoutError):
            second.result(timeout=1.5)
        assert hub.pause is not None
        hub.pause.set()
        assert first.result(timeout=60) == second.result(timeout=60)
    assert hub.requests.count("GET model.safetensors") == 1


def test_a_commit_that_is_there_is_not_asked_for_again(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"hf://team/tiny@{hub.commit}"
    path = fetch_model(uri, tmp_path)
    hub.down = True
    assert fetch_model(uri, tmp_path) == path
    assert "cannot be reached" not in caplog.text


def test_a_file_that_was_fetched_by_itself_does_not_stand_for_its_repository(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"q4.gguf": WEIGHTS, "q8.gguf": WEIGHTS[::-1]}
    commit = hub.commit
    path = fetch_model(f"hf://team/tiny@{commit}/q8.gguf", tmp_path)
    assert cached_model(f"hf://team/tiny@{commit}/q8.gguf", tmp_path) == path
    with pytest.raises(StartupError, match="fetch it first"):
        cached_model(f"hf://team/tiny@{commit}", tmp_path)


def test_branches_whose_names_look_alike_are_two(hub: Hub, tmp_path: Path) -> None:
    pointers = {_pointer(HubModel("team/tiny", revision), tmp_path) for revision in ("a/b", "a--b")}
    assert len(pointers) == 2


def test_what_an_ended_process_left_in_part_is_removed(hub: Hub, tmp_path: Path) -> None:
    """The hub's library gives each download a name of its own, and goes on with none."""
    left = tmp_path / "hf/team--tiny" / hub.commit / ".cache/huggingface/download/x.abc.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"part")
    fetch_model("hf://team/tiny", tmp_path)
    assert not left.exists()


def test_bytes_that_were_damaged_on_their_way_are_fetched_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download, tries = hf_hub_download, []

    def damages(repo: str, name: str, **options: Any) -> str:
        path: str = download(repo, name, **options)
        if name == "model.safetensors" and not tries:
            tries.append(Path(path).write_bytes(bytes(len(WEIGHTS))))
        return path

    monkeypatch.setattr("shiftruntime.models.fetch.hub.hf_hub_download", damages)
    assert_is_model(fetch_model("hf://team/tiny", tmp_path))
    assert tries


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "has no room (No space left on device): the model has 1048631 bytes"),
        (errno.EDQUOT, "has no room (Disk quota exceeded)"),
        (errno.EROFS, "cannot be written (Read-only file system); let user"),
    ],
)
def test_a_cache_that_takes_nothing_is_named_and_not_tried_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    tries = []

    def fails(*_: object, **__: object) -> None:
        tries.append(number)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("shiftruntime.models.fetch.hub.hf_hub_download", fails)
    with pytest.raises(StartupError) as refused:
        fetch_model("hf://team/tiny", tmp_path)
    assert words in refused.value.message
    assert (refused.value.reason, len(tries)) == ("FetchFailed", 1)


def test_a_certificate_that_is_not_yet_valid_points_to_the_clock(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate is not yet valid")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fails)
    with pytest.raises(StartupError, match="not yet valid; check the node's clock"):
        fetch_model("hf://team/tiny", tmp_path)


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
    with pytest.raises(StartupError, match=f"{name} has SHA-256 .* after 3 downloads, the hub says") as refused:
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
