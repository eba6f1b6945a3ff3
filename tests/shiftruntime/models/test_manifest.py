"""Sums of a model's files: as coreutils has them, complete, and below the model's folder only."""

from __future__ import annotations

import random
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftruntime.__main__ import main
from shiftruntime.errors import StartupError
from shiftruntime.models.manifest import Stopped, manifest_path, read_manifest, verify, write_manifest

DIGEST = "0" * 64


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What a folder holds matters here, not what it means."""
    folder = tmp_path / "model"
    (folder / "original").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "original/params.json", ".cache/x"):
        (folder / name).write_bytes(random.Random(name).randbytes(5000))
    (folder / "strange\nname").write_bytes(b"x")
    (folder / "back\\slash").write_bytes(b"y")
    return folder


def refused(model: Path, *words: str, required: bool = False) -> None:
    with pytest.raises(StartupError) as refusal:
        verify(model, required=required)
    assert refusal.value.reason == "ModelDamaged"
    for word in words:
        assert word in refusal.value.message


def listing(model: Path, text: str) -> None:
    manifest_path(model).write_text(text)


def test_coreutils_and_we_read_what_the_other_writes(model: Path) -> None:
    manifest = write_manifest(model)
    names = {name for name, _ in manifest.files}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "README.md", "original/params.json",
                     "strange\nname", "back\\slash"}  # fmt: skip
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=model, check=True, timeout=30)
    theirs = subprocess.run(
        ["sha256sum", "--binary", *sorted(names)], cwd=model, check=True, timeout=30, capture_output=True, text=True
    ).stdout
    listing(model, theirs)
    assert read_manifest(model) == manifest
    assert verify(model)


def test_a_single_file_has_its_manifest_beside_it(model: Path) -> None:
    single = model / "model.safetensors"
    manifest = write_manifest(single)
    assert manifest.path == model / "model.safetensors.sha256"
    assert verify(single, required=True)
    subprocess.run(["sha256sum", "--strict", "-c", manifest.path.name], cwd=model, check=True, timeout=30)
    single.write_bytes(single.read_bytes()[:-1])
    refused(single, "model.safetensors is damaged")


def test_a_damaged_file_is_named_with_both_sums(model: Path) -> None:
    expected = dict(write_manifest(model).files)["config.json"]
    (model / "config.json").write_bytes(b"{}")
    found = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    refused(model, str(model / "config.json"), expected, found)


def test_large_files_can_wait_while_the_tokenizer_cannot(model: Path) -> None:
    write_manifest(model)
    (model / "model.safetensors").write_bytes(b"")
    assert verify(model, weights=False)
    (model / "tokenizer.json").write_bytes(b"")
    with pytest.raises(StartupError, match=r"tokenizer\.json is damaged"):
        verify(model, weights=False)


def test_without_a_manifest_nothing_is_claimed_unless_one_is_required(model: Path) -> None:
    assert not verify(model)
    refused(model, "SHA256SUMS does not exist", f"shift-runtime manifest {model}", required=True)


def test_a_listed_file_that_is_missing(model: Path) -> None:
    write_manifest(model)
    (model / "config.json").unlink()
    refused(model, "config.json is listed in SHA256SUMS but does not exist")


@pytest.mark.parametrize("name", ["generation_config.json", "extra.safetensors", "chat_template.jinja"])
def test_a_file_that_would_be_read_must_be_listed(model: Path, name: str) -> None:
    write_manifest(model)
    (model / "NOTES.txt").write_text("nobody reads this")
    assert verify(model)
    (model / name).write_bytes(b"{}")
    refused(model, f"does not list {name}")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "..", ".", "\\\\..\\\\..", "./../x"])
def test_names_outside_the_folder_are_refused(model: Path, name: str) -> None:
    listing(model, f"{DIGEST}  {name}\n")
    refused(model, "line 1" if not name.startswith("\\") else "does not list")


@pytest.mark.parametrize(
    "text",
    ["", "\n", "config.json\n", f"SHA256 (config.json) = {DIGEST}\n", f"{DIGEST}  \n", f"{DIGEST[1:]}  config.json\n"],
)
def test_what_is_no_manifest_is_refused(model: Path, text: str) -> None:
    listing(model, text)
    refused(model, "SHA256SUMS")


def test_two_sums_for_one_file_are_refused(model: Path) -> None:
    listing(model, f"{DIGEST}  config.json\n{DIGEST[:-1]}1  ./config.json\n")
    refused(model, "line 2", "listed twice")


@given(st.binary(max_size=400))
def test_any_bytes_are_a_manifest_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("model", numbered=True)
    manifest_path(folder).write_bytes(data)
    try:
        manifest = read_manifest(folder)
    except StartupError:
        return
    assert manifest is not None
    assert all((folder / name).resolve().is_relative_to(folder) for name, _ in manifest.files)


def test_hashing_ends_when_nobody_waits_any_more(model: Path) -> None:
    write_manifest(model)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        verify(model, stop=stop)


def test_progress_counts_every_byte_once(model: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_manifest(model, lambda done, total: seen.append((done, total)))
    total = sum(file.stat().st_size for file in model.rglob("*") if file.is_file() and ".cache" not in file.parts)
    total -= (model / "SHA256SUMS").stat().st_size
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_command_writes_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", str(model)]) == 0
    assert "sha256sum -c SHA256SUMS" in capsys.readouterr().out
    assert verify(model, required=True)
    assert main(["manifest", str(model / "absent")]) == 1
    assert "does not exist" in capsys.readouterr().err
