"""Models from a bucket on loopback: what is fetched, that it resumes, and how it is refused."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import obstore
import pytest
from helpers.fetched_models import INDEX, MODEL, ORIGINAL, OTHERS, SHARDED, WEIGHTS, Progress, assert_is_model
from moto.server import ThreadedMotoServer
from obstore.exceptions import GenericError
from obstore.store import S3Store
from shiftruntime.errors import StartupError
from shiftruntime.models.fetch import Reader, Stopped, cached_model, fetch_model
from shiftruntime.models.manifest import verify


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
    # What it holds belongs to the process: without this, to the tests before as well.
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", b"", timeout=10).close()
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


def test_what_came_from_a_bucket_is_found_without_asking(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch_model("s3://models/team/tiny", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert cached_model("s3://models/team/tiny", tmp_path) == path
    with pytest.raises(StartupError, match="the bucket is not to be asked; fetch it first"):
        cached_model("s3://models/team/other", tmp_path)


def test_only_what_changed_in_the_bucket_is_fetched_anew(bucket: Bucket, tmp_path: Path) -> None:
    first = fetch_model("s3://models/team/tiny", tmp_path)
    before = (first / "model.safetensors").stat()
    bucket.put({"tokenizer.json": b'{"new": 1}'})
    progress = Progress()
    path = fetch_model("s3://models/team/tiny", tmp_path, progress)
    assert (path / "tokenizer.json").read_bytes() == b'{"new": 1}'
    assert (path / "model.safetensors").stat().st_ino == before.st_ino
    assert min(done for done, _ in progress.seen if done) > len(WEIGHTS)
    assert verify(path, required=True)


@pytest.mark.parametrize("when", ["before the update", "while it was stopped", "before links were noted", "unknown"])
def test_what_rotted_in_the_version_before_is_not_taken_over(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Its sum was taken anew beside the file that changed, and said that the damaged weights were right."""
    first = fetch_model("s3://models/team/tiny", tmp_path)
    bucket.put({"tokenizer.json": b'{"new": 1}'})
    ends: dict[str, tuple[str, Callable[..., None]]] = {
        "while it was stopped": ("shiftruntime.models.fetch.s3._download", lambda *_: None),
        "before links were noted": ("os.link", os.link),
    }
    if when in ends:
        where, call = ends[when]
        with monkeypatch.context() as patched:
            patched.setattr(where, ends_after(call))
            assert fetch_model("s3://models/team/tiny", tmp_path) == first
    damage(first / "model.safetensors")
    if when == "unknown":
        (first / "notes.json").write_text("{}")  # no sum of the folder counts then
    path = fetch_model("s3://models/team/tiny", tmp_path)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert verify(path, required=True)


def damage(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"rot")


def ends_after(call: Callable[..., None]) -> Callable[..., None]:
    def ending(*arguments: Any) -> None:
        call(*arguments)
        raise GenericError("the process ends here")

    return ending


def test_one_file_in_a_folder_that_rotted_is_not_taken_over(bucket: Bucket, tmp_path: Path) -> None:
    """Its manifest names it by itself, and the bucket with its folder."""
    content = b"GGUF" + WEIGHTS
    sums = {"sub/q4.gguf.sha256": b"%s  q4.gguf\n" % hashlib.sha256(content).hexdigest().encode()}
    bucket.put({"sub/q4.gguf": content} | sums, "team/nested")
    first = fetch_model("s3://models/team/nested", tmp_path)
    damage(first)
    bucket.client.delete_object(Bucket="models", Key="team/nested/sub/q4.gguf.sha256")
    path = fetch_model("s3://models/team/nested", tmp_path)
    assert path.read_bytes() == content
    assert verify(path, required=True)


def test_a_pod_that_reads_the_folder_goes_on_with_what_it_had(bucket: Bucket, tmp_path: Path) -> None:
    """Objects were overwritten in place, and another pod of the same cache fetched them."""
    reader, first = Reader(), fetch_model("s3://models/team/tiny", tmp_path)
    assert reader.keep(first)
    bucket.put(UPDATE)
    second = fetch_model("s3://models/team/tiny", tmp_path)
    assert {name: (second / name).read_bytes() for name in UPDATE} == UPDATE
    assert cached_model("s3://models/team/tiny", tmp_path) == second
    assert_is_model(first)
    reader.close()
    assert fetch_model("s3://models/team/tiny", tmp_path) == second
    assert not first.exists(), "nobody reads it any more"


def test_what_is_removed_is_not_kept_for_a_reader_who_comes_later(bucket: Bucket, tmp_path: Path) -> None:
    first = fetch_model("s3://models/team/tiny", tmp_path)
    bucket.put(UPDATE)
    second = fetch_model("s3://models/team/tiny", tmp_path)
    with closing(Reader()) as reader:
        assert not reader.keep(first)
        assert reader.keep(second)
        assert reader.keep(tmp_path), "of what is no version nothing is asked"


def test_a_restart_while_objects_are_replaced_takes_the_version_before(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each try finds an object replaced since it was listed."""
    monkeypatch.setattr("shiftruntime.models.fetch.s3._PAUSE_SECONDS", 0.0)
    first = fetch_model("s3://models/team/tiny", tmp_path)
    bucket.put(UPDATE)
    count, get = iter(range(100)), obstore.get

    def replaced(store: S3Store, name: str, **options: Any) -> Any:
        bucket.put({name: b"%d" % next(count) * 100})
        return get(store, name, **options)

    monkeypatch.setattr("obstore.get", replaced)
    assert fetch_model("s3://models/team/tiny", tmp_path) == first
    assert_is_model(first)
    assert "was replaced while it was fetched" in caplog.text
    with pytest.raises(StartupError, match="was replaced while it was fetched; start again"):
        fetch_model("s3://models/team/tiny", tmp_path / "elsewhere")


def test_a_large_file_over_a_slow_line_is_tried_as_long_as_something_comes(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftruntime.models.fetch.s3._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("shiftruntime.models.fetch.s3._PIECE_BYTES", 64 << 10)
    get = obstore.get

    class Late:
        """Its request's time is over after the first piece."""

        def __init__(self, got: Any) -> None:
            self._got = got

        def stream(self, min_chunk_size: int) -> Iterator[Any]:
            yield next(iter(self._got.stream(min_chunk_size=min_chunk_size)))
            raise GenericError("operation timed out")

    monkeypatch.setattr("obstore.get", lambda *given, **options: Late(get(*given, **options)))
    assert_is_model(fetch_model("s3://models/team/tiny", tmp_path))


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


def test_bytes_that_are_not_what_the_manifest_of_the_bucket_says_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"SHA256SUMS": b"0" * 64 + b"  model.safetensors\n"})
    with pytest.raises(StartupError) as refused:
        fetch_model("s3://models/team/tiny", tmp_path)
    assert refused.value.reason == "ModelDamaged"
    found = hashlib.sha256(WEIGHTS).hexdigest()
    for words in (f"model.safetensors has SHA-256 {found}", "SHA256SUMS of the bucket says " + "0" * 64, "3 downloads"):
        assert words in refused.value.message


def test_bytes_that_were_damaged_on_their_way_are_fetched_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put({"SHA256SUMS": sums(MODEL)})
    replace, damaged = Path.replace, []

    def damages(self: Path, target: Path) -> Path:
        if target.name == "model.safetensors" and not damaged:
            damaged.append(self.write_bytes(bytes(len(WEIGHTS))))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", damages)
    path = fetch_model("s3://models/team/tiny", tmp_path)
    assert damaged
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


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
    """As while somebody uploads a new version, its sums last."""
    bucket.put({"SHA256SUMS": sums(MODEL)})
    first = fetch_model("s3://models/team/tiny", tmp_path)
    bucket.put({"tokenizer.json": b'{"new": 1}'})
    with pytest.raises(StartupError, match="ModelDamaged"):
        fetch_model("s3://models/team/tiny", tmp_path)
    assert cached_model("s3://models/team/tiny", tmp_path) == first
    bucket.put({"SHA256SUMS": sums(MODEL | {"tokenizer.json": b'{"new": 1}'})})
    assert verify(fetch_model("s3://models/team/tiny", tmp_path), required=True)


def test_an_index_that_left_the_bucket_is_not_read_on(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({INDEX: b'{"weight_map": {"a": "model.safetensors"}}'})
    path = fetch_model("s3://models/team/tiny", tmp_path)
    assert (path / INDEX).exists()
    bucket.client.delete_object(Bucket="models", Key=f"team/tiny/{INDEX}")
    path = fetch_model("s3://models/team/tiny", tmp_path)
    assert_is_model(path)
    assert not (path / INDEX).exists()


@pytest.mark.parametrize("listed", [None, SHARDED | ORIGINAL])
def test_weights_that_the_index_does_not_name_are_neither_fetched_nor_listed(
    bucket: Bucket, tmp_path: Path, listed: dict[str, bytes] | None
) -> None:
    bucket.put(SHARDED | ORIGINAL | ({"SHA256SUMS": sums(listed)} if listed else {}), prefix="sharded")
    path = fetch_model("s3://models/sharded", tmp_path)
    assert_is_model(path, SHARDED)


def test_a_shard_that_the_manifest_of_the_bucket_lists_must_be_there(bucket: Bucket, tmp_path: Path) -> None:
    files = {name: content for name, content in SHARDED.items() if name != INDEX}
    bucket.put({name: files[name] for name in files if "2-of-2" not in name}, prefix="unindexed")
    bucket.put({"SHA256SUMS": sums(files)}, prefix="unindexed")
    with pytest.raises(StartupError, match=r"model-2-of-2\.safetensors is listed in SHA256SUMS but does not exist"):
        fetch_model("s3://models/unindexed", tmp_path)


def test_one_gguf_file_of_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"q4.gguf": WEIGHTS}, prefix="ggufs")
    path = fetch_model("s3://models/ggufs/q4.gguf", tmp_path)
    assert path.read_bytes() == WEIGHTS
    assert verify(path, required=True)


def test_two_gguf_files_of_one_prefix_fetched_at_once_are_both_known_at_the_next_start(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first one arrives, another process fetches the second one."""
    bucket.put({"a.gguf": WEIGHTS, "b.gguf": WEIGHTS[::-1]}, prefix="two")
    begun = threading.Event()

    def progress(done: int, total: int) -> None:
        if not begun.is_set():
            begun.set()
            fetch_model("s3://models/two/b.gguf", tmp_path)

    fetch_model("s3://models/two/a.gguf", tmp_path, progress)
    monkeypatch.setattr("obstore.get", lambda *_, **__: pytest.fail("fetched again"))
    for name, content in (("a.gguf", WEIGHTS), ("b.gguf", WEIGHTS[::-1])):
        path = fetch_model(f"s3://models/two/{name}", tmp_path)
        assert path.read_bytes() == content
        assert verify(path, required=True)


@pytest.mark.parametrize("uri", ["s3://models/nothing", "s3://no-bucket/tiny"])
def test_a_bucket_or_prefix_that_is_not_there_is_named(bucket: Bucket, tmp_path: Path, uri: str) -> None:
    with pytest.raises(StartupError) as refused:
        fetch_model(uri, tmp_path)
    assert uri in refused.value.message
    assert refused.value.reason == "ModelNotFound"


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on nobody listens at the endpoint."""
    return lambda: monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


@pytest.mark.parametrize("uri", ["s3://models/team/tiny", "s3://models/only", "s3://models/only/q4.gguf"])
def test_a_bucket_that_is_down_does_not_stop_what_was_fetched(
    bucket: Bucket, down: Callable[[], None], tmp_path: Path, caplog: pytest.LogCaptureFixture, uri: str
) -> None:
    bucket.put({"q4.gguf": WEIGHTS}, prefix="only")
    path = fetch_model(uri, tmp_path)
    down()
    assert fetch_model(uri, tmp_path) == path
    assert f"{uri}: bucket models cannot be asked for newer files" in caplog.text
    with pytest.raises(StartupError) as refused:
        fetch_model(uri, tmp_path / "elsewhere")
    assert refused.value.reason == "FetchFailed"


def test_sums_that_are_taken_while_the_bucket_is_down_are_a_sign_of_life(
    bucket: Bucket, down: Callable[[], None], tmp_path: Path
) -> None:
    """A large model on a slow volume was given up after the time that a fetch may be silent."""
    fetch_model("s3://models/team/tiny", tmp_path)
    down()
    told: list[int] = []
    fetch_model("s3://models/team/tiny", tmp_path, checked=lambda done, total: told.append(done))
    assert told


def test_a_model_that_is_whole_starts_where_nothing_can_be_written(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full volume, or one whose files are another user's."""
    path = fetch_model("s3://models/team/tiny", tmp_path)
    opened = os.open

    def refused(file: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, "read-only", str(file))
        return opened(file, flags, *rest)

    monkeypatch.setattr("shiftruntime.models.fetch.snapshots.os.open", refused)
    monkeypatch.setattr("pathlib.Path.write_text", no_room)
    assert fetch_model("s3://models/team/tiny", tmp_path) == path


def no_room(path: Path, text: str) -> int:
    raise OSError(errno.ENOSPC, "full", str(path))


def test_what_was_damaged_in_the_cache_is_not_used_while_the_bucket_is_down(
    bucket: Bucket, down: Callable[[], None], tmp_path: Path
) -> None:
    path = fetch_model("s3://models/team/tiny", tmp_path)
    (path / "tokenizer.json").write_bytes(b"[]")
    down()
    with pytest.raises(StartupError, match=r"tokenizer\.json is damaged") as refused:
        fetch_model("s3://models/team/tiny", tmp_path)
    assert refused.value.reason == "FetchFailed"


def test_an_update_that_was_stopped_leaves_the_version_before_while_the_bucket_is_down(
    bucket: Bucket, down: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch_model("s3://models/team/tiny", tmp_path)
    bucket.put(UPDATE)
    stop_within_the_weights("s3://models/team/tiny", tmp_path, monkeypatch)
    down()
    assert cached_model("s3://models/team/tiny", tmp_path) == first
    assert_is_model(fetch_model("s3://models/team/tiny", tmp_path))


def test_a_file_that_was_fetched_by_itself_does_not_stand_for_its_prefix_while_the_bucket_is_down(
    bucket: Bucket, down: Callable[[], None], tmp_path: Path
) -> None:
    bucket.put({"q4.gguf": WEIGHTS}, prefix="only")
    fetch_model("s3://models/only/q4.gguf", tmp_path)
    down()
    with pytest.raises(StartupError) as refused:
        fetch_model("s3://models/only", tmp_path)
    assert refused.value.reason == "FetchFailed"


def test_an_endpoint_that_is_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(StartupError) as refused:
        fetch_model("s3://models/team/tiny", tmp_path)
    assert refused.value.reason == "FetchFailed"
