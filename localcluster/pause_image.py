"""The image that holds each pod's namespaces: one static program, packed here instead of pulled from a registry."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from localcluster.containers import Containers


def reference(program: Path) -> str:
    return f"localhost/shift/pause:{hashlib.sha256(program.read_bytes()).hexdigest()[:12]}"


def ensure(containers: Containers, program: Path) -> None:
    name = reference(program)
    if name not in containers.images():
        archive = program.with_suffix(".tar")
        archive.write_bytes(archive_of(name, program.read_bytes()))
        containers.import_image(archive)
        archive.unlink()


def archive_of(name: str, program: bytes) -> bytes:
    """A docker-archive with one layer that holds /pause."""
    layer = _tar({"pause": (program, 0o755)})
    config = json.dumps({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }).encode()  # fmt: skip
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    return _tar({"config.json": (config, 0o644), "layer.tar": (layer, 0o644), "manifest.json": (manifest, 0o644)})


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
