"""Container images without Docker: a Debian base by mmdebstrap, Dockerfiles by buildah, into the cluster by ctr."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from localcluster.containers import Containers
from localcluster.errors import ClusterError
from localcluster.lock import exclusive
from localcluster.settings import Settings, from_environment

REPOSITORY = Path(__file__).resolve().parents[1]
BASE_FILES = Path(__file__).resolve().parent / "base"
BASE_IMAGE = "localhost/shift/base:bookworm"
BASE_SECONDS = 900.0
BUILD_SECONDS = 1800.0
# Never part of what an image copies, wherever they lie.
IGNORED_FOLDERS = {"__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules"}


@dataclass(frozen=True)
class ProjectImage:
    """An image of this project. `inputs` are the paths whose change makes a new build necessary."""

    dockerfile: str
    inputs: tuple[str, ...]
    target: str | None  # stage of the Dockerfile; None: the last


# The lock names every member, so their project files are needed to read it.
PROJECT_IMAGES = {
    "operator": ProjectImage(
        "operator/Dockerfile",
        ("core", "protos", "operator", "runtime/pyproject.toml", "sim/pyproject.toml", "pyproject.toml", "uv.lock"),
        target=None,
    ),
    # Without the third-party wheels: PyTorch alone is 5 GB, which pods read from the host (content.py).
    "runtime": ProjectImage(
        "runtime/Dockerfile",
        ("core", "protos", "runtime", "operator/pyproject.toml", "sim/pyproject.toml", "pyproject.toml", "uv.lock"),
        target="thin",
    ),
}


def build_project_image(name: str, settings: Settings | None = None) -> str:
    if name not in PROJECT_IMAGES:
        raise ClusterError("NoSuchImage", f"{name} is none of this project's images: {', '.join(PROJECT_IMAGES)}")
    image = PROJECT_IMAGES[name]
    inputs = [REPOSITORY / path for path in image.inputs if (REPOSITORY / path).exists()]
    return build_and_load(name, REPOSITORY / image.dockerfile, image.target, REPOSITORY, inputs, settings)


def built_key(name: str, settings: Settings) -> str:
    """Identifies the content of a project image that was built; changes when the image does."""
    key = Builder(settings).built_key(f"localhost/shift/{name}:dev")
    if key is None:
        raise ClusterError("NotBuilt", f"image {name} was not built yet; run `cluster.py images {name}`")
    return key[:16]


def build_and_load(
    name: str, dockerfile: Path, target: str | None, context: Path, inputs: list[Path],
    settings: Settings | None = None,
) -> str:  # fmt: skip
    """Builds `localhost/shift/NAME:dev` if its inputs changed, loads it if the cluster lacks it; returns its name."""
    where = settings or from_environment()
    if not dockerfile.is_file():
        raise ClusterError("NoDockerfile", f"{dockerfile} does not exist")
    reference = f"localhost/shift/{name}:dev"
    with exclusive(where):
        builder = Builder(where)
        builder.ensure_base()
        key = content_hash([dockerfile, *inputs], context, [target or "", builder.base_key()])
        if builder.built_key(reference) != key:
            builder.build(reference, dockerfile, target, context)
            builder.record(reference, key)
        load(builder, reference, key)
    return reference


def load(builder: Builder, reference: str, key: str) -> None:
    """Imports the built image unless the cluster has exactly that one."""
    containers = Containers(builder.settings.containerd_socket)
    marker = builder.marker(reference).with_suffix(".loaded")
    present = containers.images().get(reference)
    if present is not None and marker.exists() and marker.read_text() == f"{key} {present}":
        return
    started = time.monotonic()
    archive = builder.export(reference)
    try:
        containers.import_image(archive)
    finally:
        archive.unlink()
    marker.write_text(f"{key} {containers.images()[reference]}")
    print(f"  loaded {reference}: {time.monotonic() - started:.1f} s", flush=True)


def content_hash(paths: Iterable[Path], context: Path, extra: Iterable[str] = ()) -> str:
    """Over names, contents and executable bits of the files, wherever the context lies on disk."""
    digest = hashlib.sha256("\0".join(extra).encode())
    for path in sorted({file for root in paths for file in _files(root)}):
        label = os.path.relpath(path, context)
        digest.update(f"\0{label}\0{os.access(path, os.X_OK)}\0".encode())
        digest.update(os.readlink(path).encode() if path.is_symlink() else path.read_bytes())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise ClusterError("InputMissing", f"{path} is named as an input of an image and does not exist")
        return [path]
    found = []
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if name not in IGNORED_FOLDERS]
        found += [Path(folder) / file for file in files]
    return found


class Builder:
    """buildah with a store of its own, so that it never mixes with that of a user of the machine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.cache / "images"
        self.folder.mkdir(parents=True, exist_ok=True)

    def base_key(self) -> str:
        return content_hash([BASE_FILES], BASE_FILES, [self.settings.debian_mirror])

    def ensure_base(self) -> None:
        if self.built_key(BASE_IMAGE) == self.base_key():
            return
        started = time.monotonic()
        print("  making the Debian base image with mmdebstrap, once", flush=True)
        archive = self.folder / "base.tar"
        self._bootstrap(archive)
        container = self.buildah("from", "scratch").strip()
        try:
            self.buildah("add", "--quiet", container, str(archive), "/")
            self.buildah("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
                         "--env", "LANG=C.UTF-8", "--cmd", "python3", container)  # fmt: skip
            self.buildah("commit", "--quiet", container, BASE_IMAGE)
        finally:
            self.buildah("rm", container)
            archive.unlink()
        self.record(BASE_IMAGE, self.base_key())
        print(f"  base image: {time.monotonic() - started:.1f} s", flush=True)

    def _bootstrap(self, archive: Path) -> None:
        lines = (BASE_FILES / "packages.txt").read_text().splitlines()
        packages = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        mirror = self.settings.debian_mirror
        _run(["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}",
              '--aptopt=Acquire::Languages "none"', '--dpkgopt=path-exclude=/usr/share/man/*',
              f"--customize-hook={BASE_FILES / 'customize.sh'} \"$1\"",
              "bookworm", str(archive), mirror], self.folder / "base.log", BASE_SECONDS)  # fmt: skip

    def build(self, reference: str, dockerfile: Path, target: str | None, context: Path) -> None:
        started = time.monotonic()
        print(f"  building {reference} from {dockerfile}", flush=True)
        # Certificates and pip settings of this host are lent to the build and stay out of the image.
        lent = [path for path in (self.settings.pip_config,) if path.is_file()]
        volumes = [f"--volume={path}:{path}:ro" for path in lent]
        if self.settings.ca_bundle.is_file():
            volumes.append(f"--volume={self.settings.ca_bundle}:/etc/ssl/certs/ca-certificates.crt:ro")
        command = [
            *self._command(), "build", "--isolation=chroot", "--layers", "--pull-never", *volumes,
            f"--build-arg=BASE_IMAGE={BASE_IMAGE}", f"--file={dockerfile}", f"--tag={reference}",
            *([f"--target={target}"] if target else []), str(context),
        ]  # fmt: skip
        _run(command, self.marker(reference).with_suffix(".log"), BUILD_SECONDS)
        print(f"  built {reference}: {time.monotonic() - started:.1f} s", flush=True)

    def export(self, reference: str) -> Path:
        archive = self.marker(reference).with_suffix(".tar")
        archive.unlink(missing_ok=True)
        self.buildah("push", "--quiet", reference, f"docker-archive:{archive}:{reference}", seconds=BUILD_SECONDS)
        return archive

    def built_key(self, reference: str) -> str | None:
        """The content hash that the stored image was built from; None when there is no such image any more."""
        marker = self.marker(reference)
        if not marker.exists():
            return None
        known = json.loads(self.buildah("images", "--json"))
        names = {name for image in known for name in image.get("names") or []}
        return marker.read_text() if reference in names else None

    def record(self, reference: str, key: str) -> None:
        self.marker(reference).write_text(key)

    def marker(self, reference: str) -> Path:
        return self.folder / (reference.replace("/", "_").replace(":", "_") + ".key")

    def buildah(self, *arguments: str, seconds: float = 300.0) -> str:
        command = [*self._command(), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode != 0:
            raise ClusterError("BuildahFailed", f"`{' '.join(command)}`: {done.stderr.strip()[-800:]}")
        return done.stdout

    def _command(self) -> list[str]:
        run = self.settings.run / "buildah"
        return ["buildah", f"--root={self.folder / 'store'}", f"--runroot={run}", "--storage-driver=overlay"]


def _run(command: list[str], log: Path, seconds: float) -> None:
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=seconds, check=False
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise ClusterError("ImageFailed", f"`{' '.join(command)}` ended with {done.returncode}; {log} says:\n{tail}")
