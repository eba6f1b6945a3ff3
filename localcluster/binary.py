"""Builds the two Go programs (every Kubernetes component in one, and `pause`), cached by hash of their sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.settings import KUBERNETES_VERSION, Settings

SOURCES = Path(__file__).resolve().parent / "kube"
BUILD_DEADLINE_SECONDS = 45 * 60
PROGRESS_SECONDS = 15
NEEDED_GO = (1, 26)


@dataclass(frozen=True)
class Binaries:
    kube: Path
    pause: Path
    source_hash: str


def source_hash(sources: Path = SOURCES) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in sources.rglob("*") if p.suffix in {".go", ".mod", ".sum"}):
        digest.update(path.relative_to(sources).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(KUBERNETES_VERSION.encode())
    return digest.hexdigest()[:16]


def ensure(settings: Settings) -> Binaries:
    """The cached programs, built first if the sources changed."""
    key = source_hash()
    folder = settings.cache / key
    binaries = Binaries(kube=folder / "shift-kube", pause=folder / "pause", source_hash=key)
    if binaries.kube.exists() and binaries.pause.exists():
        return binaries
    go = find_go()
    folder.mkdir(parents=True, exist_ok=True)
    print("  building Kubernetes from source, once: about 6 minutes on 2 cores with a cold Go cache", flush=True)
    _build(go, "./pause", binaries.pause, "-s -w")
    _build(go, ".", binaries.kube, _linker_flags())
    return binaries


def find_go() -> str:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise ClusterError("GoMissing", "no `go` in PATH or /usr/local/go/bin; install Go 1.26 from go.dev/dl")
    version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True, timeout=30).stdout
    numbers = version.strip().removeprefix("go").split(".")
    if (int(numbers[0]), int(numbers[1])) < NEEDED_GO:
        raise ClusterError("GoTooOld", f"{go} is {version.strip()}, Kubernetes {KUBERNETES_VERSION} needs Go 1.26")
    return go


def _linker_flags() -> str:
    # Helm and client libraries read the server's version; without these the API server calls itself v0.0.0.
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    version = "k8s.io/component-base/version"
    values = {
        f"{version}.gitVersion": KUBERNETES_VERSION,
        f"{version}.gitMajor": major,
        f"{version}.gitMinor": minor,
        f"{version}.gitTreeState": "clean",
        "k8s.io/client-go/pkg/version.gitVersion": KUBERNETES_VERSION,
    }
    return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in values.items())])


def _build(go: str, package: str, target: Path, linker_flags: str) -> None:
    partial = target.with_suffix(".partial")
    log = target.with_suffix(".build.log")
    command = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", linker_flags, "-o", str(partial), package]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=SOURCES, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_with_progress(process, target.name)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(timeout=30)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise ClusterError("BuildFailed", f"`{' '.join(command)}` in {SOURCES} ended with:\n{tail}")
    partial.rename(target)


def _wait_with_progress(process: subprocess.Popen[bytes], name: str) -> None:
    started = time.monotonic()
    while True:
        try:
            process.wait(timeout=PROGRESS_SECONDS)
            return
        except subprocess.TimeoutExpired:
            elapsed = time.monotonic() - started
            print(f"  building {name}: {elapsed:.0f} s", flush=True)
            if elapsed > BUILD_DEADLINE_SECONDS:
                raise ClusterError("BuildTimeout", f"{name} was not built in {BUILD_DEADLINE_SECONDS} s") from None
