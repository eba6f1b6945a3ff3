"""The operator's configuration: the one file that reads the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

# Of all objects together: with many of them each is looked at more rarely, so that what happens finds a free operator.
MOST_RESYNCS_PER_SECOND = 5.0
MOST_POLLS_PER_SECOND = 100.0

# Name -> what it means; `shift-operator --help` prints this table.
VARIABLES = {
    "SHIFT_WATCH_NAMESPACES": "namespaces to watch, comma-separated; empty: all namespaces (needs a ClusterRole)",
    "SHIFT_NAMESPACE": "namespace of the operator: its Lease lives there and control ports are open to it [default]",
    "SHIFT_LEASE_NAME": "name of the leader's Lease [shift-operator]",
    "SHIFT_LEASE_SECONDS": "a leader silent for this long is replaced [15]",
    "SHIFT_IDENTITY": "this process in the Lease [host name]",
    "SHIFT_METRICS_NAMESPACES": "namespaces that may read metrics of runtime pods, comma-separated, beside its own",
    "SHIFT_RUNTIME_IMAGE": "image of runtime pods whose spec.runtime.image is unset",
    "SHIFT_OPS_PORT": "port of /livez, /readyz and /metrics; 0 takes a free one [8080]",
    "SHIFT_LOG_LEVEL": "debug, info, warning or error [info]",
    "SHIFT_LOG_FORMAT": "text or json [text]",
    "SHIFT_RESYNC_SECONDS": (
        f"how often an object is compared with the cluster unasked; at most {MOST_RESYNCS_PER_SECOND:g} a second in "
        f"all, and {MOST_RESYNCS_PER_SECOND:g} of those that are not as they were asked for [5]"
    ),
    "SHIFT_POLL_SECONDS": (
        f"how often the state of every pod is read; of at most {MOST_POLLS_PER_SECOND:g} objects a second in all [2]"
    ),
}

_NUMBERS = {"SHIFT_LEASE_SECONDS": 5.0, "SHIFT_OPS_PORT": 0.0, "SHIFT_RESYNC_SECONDS": 1.0, "SHIFT_POLL_SECONDS": 0.5}


class SettingsError(Exception):
    """An environment variable of the operator has a bad value; the message names both."""


@dataclass(frozen=True)
class Settings:
    watch_namespaces: tuple[str, ...] = ()
    namespace: str = "default"
    metrics_namespaces: tuple[str, ...] = ()
    lease_name: str = "shift-operator"
    lease_seconds: float = 15.0
    identity: str = "shift-operator"
    runtime_image: str = "localhost/shift/runtime:dev"
    ops_port: int = 8080
    log_level: str = "info"
    log_format: str = "text"
    resync_seconds: float = 5.0
    poll_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise SettingsError(f"SHIFT_LOG_LEVEL={self.log_level!r}: use debug, info, warning or error")
        if self.log_format not in ("text", "json"):
            raise SettingsError(f"SHIFT_LOG_FORMAT={self.log_format!r}: use text or json")
        if not 0 <= self.ops_port <= 65535:
            raise SettingsError(f"SHIFT_OPS_PORT={self.ops_port}: use 0..65535")

    @property
    def cluster_wide(self) -> bool:
        return not self.watch_namespaces


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    numbers = {name: _number(environment, name, least) for name, least in _NUMBERS.items()}
    chosen = {
        "watch_namespaces": _names(environment.get("SHIFT_WATCH_NAMESPACES", "")),
        "metrics_namespaces": _names(environment.get("SHIFT_METRICS_NAMESPACES", "")),
        "namespace": environment.get("SHIFT_NAMESPACE"),
        "lease_name": environment.get("SHIFT_LEASE_NAME"),
        "lease_seconds": numbers["SHIFT_LEASE_SECONDS"],
        "identity": environment.get("SHIFT_IDENTITY") or f"{socket.gethostname()}-{os.getpid()}",
        "runtime_image": environment.get("SHIFT_RUNTIME_IMAGE"),
        "ops_port": None if numbers["SHIFT_OPS_PORT"] is None else int(numbers["SHIFT_OPS_PORT"]),
        "log_level": environment.get("SHIFT_LOG_LEVEL", "").lower(),
        "log_format": environment.get("SHIFT_LOG_FORMAT", "").lower(),
        "resync_seconds": numbers["SHIFT_RESYNC_SECONDS"],
        "poll_seconds": numbers["SHIFT_POLL_SECONDS"],
    }
    return Settings(**{key: value for key, value in chosen.items() if value not in (None, "")})  # type: ignore[arg-type]


def _names(text: str) -> tuple[str, ...] | None:
    return tuple(sorted({part.strip() for part in text.split(",") if part.strip()})) or None


def _number(environment: Mapping[str, str], name: str, least: float) -> float | None:
    text = environment.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise SettingsError(f"{name}={text!r} is no number") from error
    if value < least:
        raise SettingsError(f"{name}={text}: use at least {least:g}")
    return value
