"""A page in headless Chromium: its document once its scripts have run, and what it logged."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip
_INSTALL_SECONDS = 300.0
_PAGE_SECONDS = 300.0  # on a busy machine; alone a page takes 3
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Page:
    document: str  # as it is after the scripts
    console: tuple[str, ...]  # errors of scripts, and what the page's policy of content refused to load


def find() -> str | None:
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def why_not_installed() -> str:
    """Installs Debian's package where that can be done; else why not."""
    if platform.system() != "Linux" or os.geteuid() != 0 or not shutil.which("apt-get"):
        return "chromium is missing, and installing it takes root and apt-get"
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], install):
        try:
            done = subprocess.run(
                command, env=environment, timeout=_INSTALL_SECONDS, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} did not end within {_INSTALL_SECONDS:.0f} s"
        if done.returncode:
            return f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}"
    return "" if find() else "the package chromium is installed and brought no chromium"


def load(browser: str, page: Path, profile: Path, *more: str, fragment: str = "", width: int = 1200) -> Page:
    """``profile``: an empty folder. Raises TimeoutExpired, and CalledProcessError where the browser fails."""
    flags = (
        *_QUIET, f"--user-data-dir={profile}", f"--window-size={width},900", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", *more,
    )  # fmt: skip
    done = subprocess.run(
        [browser, *flags, page.as_uri() + fragment], timeout=_PAGE_SECONDS, capture_output=True, text=True, check=True
    )
    console = tuple(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return Page(done.stdout, console)
