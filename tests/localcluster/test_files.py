"""Settings, images and volumes: the parts that only look at files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from localcluster import binary, health, images, pause_image, storage
from localcluster.errors import ClusterError
from localcluster.settings import Settings


def test_settings_refuse_a_state_folder_that_down_must_not_delete(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="/var must be"):
        Settings(Path("/var"), tmp_path / "run", tmp_path / "cache", "http://mirror", tmp_path, tmp_path)


def test_content_hash_follows_content_name_and_mode_but_not_place(tmp_path: Path) -> None:
    hashes = []
    for place in ("one", "two"):
        source = tmp_path / place / "src"
        source.mkdir(parents=True)
        (source / "a.py").write_text("a")
        hashes.append(images.content_hash([source], tmp_path / place))
    assert hashes[0] == hashes[1]
    (source / "a.py").chmod(0o755)
    hashes.append(images.content_hash([source], tmp_path / place))
    (source / "a.py").write_text("b")
    hashes.append(images.content_hash([source], tmp_path / place))
    (source / "a.py").rename(source / "b.py")
    hashes.append(images.content_hash([source], tmp_path / place))
    assert len(set(hashes)) == 4


def test_content_hash_ignores_caches(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a")
    before = images.content_hash([tmp_path], tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert images.content_hash([tmp_path], tmp_path) == before


def test_content_hash_names_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"InputMissing: .*absent"):
        images.content_hash([tmp_path / "absent"], tmp_path)


def test_pause_archive_holds_one_executable_layer() -> None:
    content = pause_image.archive_of("localhost/pause:1", b"program")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        assert json.load(files["manifest.json"]) == [  # type: ignore[arg-type]
            {"Config": "config.json", "RepoTags": ["localhost/pause:1"], "Layers": ["layer.tar"]}
        ]
        with tarfile.open(fileobj=files["layer.tar"]) as layer:
            assert layer.getmember("pause").mode == 0o755


def test_world_readable_names_the_path_and_the_fix(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "model").mkdir(mode=0o755)
    weights = tmp_path / "model" / "weights.bin"
    weights.write_text("x")
    weights.chmod(0o644)
    storage.require_world_readable(tmp_path)
    weights.chmod(0o600)
    with pytest.raises(ClusterError, match=r"NotWorldReadable: .*weights.bin has mode -rw-------.*chmod"):
        storage.require_world_readable(tmp_path)


def test_world_readable_refuses_a_file(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="NotAFolder"):
        storage.require_world_readable(tmp_path / "absent")


def test_dns_names_are_length_prefixed_labels() -> None:
    assert health.encode_name("a.svc.local") == b"\x01a\x03svc\x05local\x00"


def test_source_hash_follows_the_go_sources(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main")
    before = binary.source_hash(tmp_path)
    (tmp_path / "notes.md").write_text("not built")
    assert binary.source_hash(tmp_path) == before
    (tmp_path / "main.go").write_text("package other")
    assert binary.source_hash(tmp_path) != before
