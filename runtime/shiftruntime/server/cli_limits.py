"""The groups "limits" and "TLS" of `shift-runtime serve --help`, and what their values become."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from shiftruntime.engine.options import EngineOptions
from shiftruntime.server.limits import (
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
    MAX_SECONDS,
    MIN_MESSAGE_BYTES,
    MIN_METADATA_BYTES,
    ServerLimits,
)
from shiftruntime.server.tls import TlsFiles
from shiftruntime.server.usage import UsageError, parse_size

DEFAULTS = ServerLimits()


def add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits", "What is beyond them is refused at once, with the limit in the answer.")
    group.add_argument(
        "--max-message",
        type=_size(MIN_MESSAGE_BYTES, MAX_MESSAGE_BYTES),
        default=DEFAULTS.message_bytes,
        metavar="SIZE",
        help="largest request, over gRPC or HTTP; a prompt takes about 3 bytes per token id (default: 8Mi)",
    )
    group.add_argument(
        "--max-metadata",
        type=_size(MIN_METADATA_BYTES, MAX_METADATA_BYTES),
        default=DEFAULTS.metadata_bytes,
        metavar="SIZE",
        help="largest metadata of a gRPC call, and largest header of an HTTP request (default: 16Ki)",
    )
    group.add_argument(
        "--max-streams",
        type=_count(1, 2**31 - 1),
        default=DEFAULTS.streams,
        metavar="N",
        help="open calls of one connection; more wait in the client. Keep it above --max-num-seqs + --max-waiting, so "
        f"that a full queue is refused with a reason (default: {DEFAULTS.streams})",
    )
    group.add_argument(
        "--max-waiting",
        type=_count(1, 65_536),
        default=EngineOptions.max_waiting_requests,
        metavar="N",
        help="requests that wait for a place; more are refused RESOURCE_EXHAUSTED at once, so that a router can try "
        "another pod (default: 256)",
    )
    for option, default, text in (
        (
            "--max-wait-seconds",
            DEFAULTS.wait_seconds,
            "a request without its first token after S seconds ends RESOURCE_EXHAUSTED",
        ),
        (
            "--max-request-seconds",
            DEFAULTS.request_seconds,
            "a request ends DEADLINE_EXCEEDED after S seconds, or earlier if it asks for that",
        ),
        (
            "--max-connection-age",
            DEFAULTS.connection_age_seconds,
            "ask clients to connect anew after S seconds, by which they find new pods; streams go on. 0: never",
        ),
        (
            "--max-connection-grace",
            None,
            "cut a connection S seconds after it was asked to end (default: --max-request-seconds)",
        ),
        ("--keepalive-seconds", DEFAULTS.keepalive_seconds, "ping a silent client after S seconds"),
        (
            "--keepalive-timeout",
            DEFAULTS.keepalive_timeout_seconds,
            "a client that does not answer a ping for S seconds is gone, and its requests are aborted",
        ),
    ):
        group.add_argument(
            option,
            type=_seconds(0.0 if option == "--max-connection-age" else 0.001),
            default=default,
            metavar="S",
            help=text + ("" if default is None else f" (default: {default:g})"),
        )


def add_tls(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "TLS", "PEM files. They are read again when they change; new connections use them."
    )
    group.add_argument(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="certificate with its chain; the inference and the OpenAI port then speak TLS only",
    )
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="key of the certificate, without a password")
    group.add_argument(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="mutual TLS: clients must show a certificate signed by this authority",
    )
    group.add_argument(
        "--tls-control",
        action="store_true",
        help="TLS on the control port as well; this version's operator speaks plaintext to it",
    )


def limits_of(values: argparse.Namespace) -> ServerLimits:
    return ServerLimits(
        message_bytes=values.max_message,
        metadata_bytes=values.max_metadata,
        streams=values.max_streams,
        request_seconds=values.max_request_seconds,
        wait_seconds=values.max_wait_seconds,
        connection_age_seconds=values.max_connection_age,
        connection_grace_seconds=values.max_connection_grace,
        keepalive_seconds=values.keepalive_seconds,
        keepalive_timeout_seconds=values.keepalive_timeout,
    )


def tls_of(values: argparse.Namespace) -> TlsFiles | None:
    """None without TLS; raises ValueError for options that need each other."""
    if (values.tls_cert is None) != (values.tls_key is None):
        given, missing = ("--tls-cert", "--tls-key") if values.tls_cert else ("--tls-key", "--tls-cert")
        raise ValueError(f"{given} needs {missing}")
    if values.tls_cert is None:
        for option, value in (("--tls-client-ca", values.tls_client_ca), ("--tls-control", values.tls_control)):
            if value:
                raise ValueError(f"{option} needs --tls-cert and --tls-key")
        return None
    return TlsFiles(values.tls_cert, values.tls_key, values.tls_client_ca)


def _size(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = parse_size(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is {value} bytes, outside {low}..{high}")
        return value

    return convert


def _count(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number in {low}..{high}")
        return int(text)

    return convert


def _seconds(low: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= MAX_SECONDS:  # NaN compares false
            raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds in {low:g}..{MAX_SECONDS:g}")
        return value

    return convert
