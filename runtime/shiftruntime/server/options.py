"""`shift-runtime serve`: command line and environment into one checked, frozen value."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from shiftcore.layout import Gear, LayoutError, allowed_gears
from shiftcore.policy import Mode, Policy, PolicyError
from shiftprotos import contract

from shiftruntime.engine.options import EngineOptions
from shiftruntime.errors import StartupError
from shiftruntime.log import LogFormat, LogLevel
from shiftruntime.models.fetch.uri import short_name
from shiftruntime.server.chat.tools import Family
from shiftruntime.server.cli import build_parser
from shiftruntime.server.cli_limits import DEFAULTS as DEFAULT_LIMITS
from shiftruntime.server.cli_limits import limits_of, tls_of
from shiftruntime.server.environment import Environment
from shiftruntime.server.fetch_cli import FetchOptions, fetch_options
from shiftruntime.server.limits import ServerLimits
from shiftruntime.server.terminal.cli import TerminalOptions, terminal_options
from shiftruntime.server.tls import TlsFiles
from shiftruntime.server.usage import UsageError, parse_size

MIN_KV_MEMORY_BYTES = 2**20
MAX_TPOT_TARGET_MS = 60_000.0


@dataclass(frozen=True)
class ServeOptions:
    engine: EngineOptions
    served_name: str
    host: str = "127.0.0.1"
    port: int = contract.INFERENCE_PORT
    control_port: int = contract.CONTROL_PORT
    ops_port: int = contract.OPS_PORT
    openai_port: int | None = contract.OPENAI_PORT  # None: no OpenAI routes
    api_key_file: Path | None = None  # of the OpenAI port
    chat_template: Path | None = None  # instead of the model's own
    tool_calls: Family | None = None  # None: as the chat template says
    drain_seconds: float = contract.DEFAULT_DRAIN_SECONDS
    model_cache: str | None = None  # for models that are fetched; None: in the user's cache
    offline: bool = False  # only what was fetched before
    reflection: bool = True
    limits: ServerLimits = DEFAULT_LIMITS
    tls: TlsFiles | None = None  # of the inference port
    tls_control: bool = False  # of the control port as well, unless the environment gives it files of its own
    model_defaults: bool = True
    log_requests: bool = False
    log_format: LogFormat = LogFormat.TEXT
    log_level: LogLevel = LogLevel.INFO
    environment: Environment = field(default_factory=Environment)


def parse(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> ServeOptions:
    """Raises UsageError; ends the process only for --help and --version."""
    environment = Environment.of(os.environ if variables is None else variables)
    values = build_parser(_Parser).parse_args(arguments)
    engine = _engine(values)
    if not 0 <= values.drain_seconds <= contract.MAX_DRAIN_SECONDS:  # NaN compares false
        raise UsageError(f"--drain-seconds {values.drain_seconds:g} is outside 0..{contract.MAX_DRAIN_SECONDS}")
    ports = {"--port": values.port, "--control-port": values.control_port, "--ops-port": values.ops_port}
    _check_ports(ports | {"--openai-port": values.openai_port or 0})
    return ServeOptions(
        engine=engine,
        served_name=_served_name(values.served_name, values.model),
        host=values.host,
        port=values.port,
        control_port=values.control_port,
        ops_port=values.ops_port,
        openai_port=values.openai_port,
        api_key_file=values.api_key_file,
        chat_template=values.chat_template,
        tool_calls=values.tool_calls,
        drain_seconds=values.drain_seconds,
        model_cache=values.model_cache,
        offline=values.offline,
        reflection=values.reflection,
        limits=limits_of(values),
        tls=_tls(values),
        tls_control=values.tls_control,
        model_defaults=values.sampling_defaults == "model",
        log_requests=values.log_requests,
        log_format=LogFormat(values.log_format),
        log_level=LogLevel(values.log_level),
        environment=environment,
    )


def parse_terminal(arguments: Sequence[str]) -> TerminalOptions:
    """Of `shift-runtime generate` and `chat`; raises UsageError."""
    values = build_parser(_Parser).parse_args(arguments)
    return terminal_options(values, _engine(values))


def parse_manifest(arguments: Sequence[str]) -> str:
    """The model of `shift-runtime manifest`; raises UsageError."""
    return str(build_parser(_Parser).parse_args(arguments).model)


def parse_fetch(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> FetchOptions:
    """Raises UsageError."""
    environment = Environment.of(os.environ if variables is None else variables)
    return fetch_options(build_parser(_Parser).parse_args(arguments), environment)


def _engine(values: argparse.Namespace) -> EngineOptions:
    """Raises UsageError."""
    _check_device(values.device)
    base_gear = _base_gear(values.base_gear, values.ranks)
    if values.calibration and not values.calibrate:
        raise UsageError(f"--calibration {values.calibration} has no effect with --no-calibration; leave one out")
    return EngineOptions(
        model=values.model,
        ranks=values.ranks,
        base_gear=base_gear,
        dtype=_dtype(values.dtype, values.exact),
        exact=values.exact,
        quantisation=values.quantization,
        require_manifest=values.require_manifest,
        policy=_policy(values.policy, values.threshold, base_gear),
        max_num_seqs=values.max_num_seqs,
        max_batched_tokens=values.max_batched_tokens,
        max_model_len=values.max_model_len,
        max_waiting_requests=values.max_waiting,
        kv_memory_bytes=_kv_memory(values.kv_memory, values.kv_memory_percent),
        kv_cache_dtype=values.kv_cache_dtype,
        kv_memory_percent=values.kv_memory_percent or EngineOptions.kv_memory_percent,
        prefix_cache=values.prefix_cache,
        overlap=values.overlap,
        calibrate=values.calibrate,
        calibration_file=values.calibration,
        tpot_target_seconds=_tpot_target(values.tpot_target_ms),
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _base_gear(name: str | None, ranks: int) -> Gear:
    if name is None:
        return Gear(ranks, 1)
    try:
        gear = Gear.parse(name)
    except LayoutError as error:
        raise UsageError(f"--base-gear: {error}") from error
    if gear.ranks != ranks:
        raise UsageError(
            f"--base-gear {name} takes {gear.ranks} ranks, but --ranks is {ranks}; "
            f"set --ranks {gear.ranks}, or --base-gear {Gear(ranks, 1)}"
        )
    return gear


def _policy(name: str, threshold: int | None, base_gear: Gear) -> Policy:
    mode, gear = Mode.AUTO, None
    if name.lower() in ("auto", "latency", "throughput"):
        mode = Mode(name.capitalize())
    else:
        gear = name
        allowed = [allowed.name for allowed in allowed_gears(base_gear)]
        if gear not in allowed:
            raise UsageError(
                f"--policy {name} is neither auto, latency, throughput nor a gear of base gear {base_gear}: "
                f"{', '.join(allowed)}"
            )
    if threshold is not None and (gear is not None or mode is not Mode.AUTO):
        raise UsageError(f"--threshold {threshold} has no effect with --policy {name}; use --policy auto")
    try:
        return Policy(mode, threshold, gear)
    except PolicyError as error:
        raise UsageError(f"--threshold: {error}") from error


def _check_device(device: str) -> None:
    if device == "cuda":
        raise UsageError("--device cuda is not supported by this version; use --device cpu")


def _dtype(dtype: str, exact: bool) -> str:
    if not exact:
        return dtype
    if dtype == "bfloat16":
        raise UsageError("--exact needs --dtype float32 or float64; bfloat16 cannot be bit-stable over gears")
    return "float32" if dtype == "auto" else dtype


def _tpot_target(milliseconds: float | None) -> float | None:
    if milliseconds is None:
        return None
    if not 0 < milliseconds <= MAX_TPOT_TARGET_MS:  # NaN compares false
        raise UsageError(f"--tpot-target-ms {milliseconds:g} is outside (0, {MAX_TPOT_TARGET_MS:g}]")
    return milliseconds / 1e3


def _kv_memory(text: str | None, percent: int | None) -> int | None:
    if text is None:
        return None
    if percent is not None:
        raise UsageError(f"--kv-memory {text} says all; remove --kv-memory-percent {percent}")
    try:
        size = parse_size(text)
    except UsageError as error:
        raise UsageError(f"--kv-memory: {error}") from error
    if size < MIN_KV_MEMORY_BYTES:
        raise UsageError(f"--kv-memory {text} is {size} bytes; at least 1Mi per rank is needed")
    return size


def _served_name(name: str | None, model: str) -> str:
    if name is not None and not name.strip():
        raise UsageError("--served-name is empty; leave it out to use the model's file or folder name")
    try:
        return name or short_name(model)
    except StartupError as error:
        raise UsageError(error.message) from error


def _check_ports(ports: Mapping[str, int]) -> None:
    """Port 0 means any free one and may be given more than once."""
    taken: dict[int, str] = {}
    for option, port in ports.items():
        if port and port in taken:
            raise UsageError(f"{option} {port} is also {taken[port]}; give each its own port")
        taken[port] = option


def _tls(values: argparse.Namespace) -> TlsFiles | None:
    try:
        return tls_of(values)
    except ValueError as error:
        raise UsageError(str(error)) from error
