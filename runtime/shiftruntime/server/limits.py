"""What one client may take of the front end, and what it is told when it wants more. gRPC's own limits live here."""

from __future__ import annotations

from dataclasses import dataclass

CONTROL_MESSAGE_BYTES = 2**20
MIN_MESSAGE_BYTES = 2**10
MAX_MESSAGE_BYTES = 2**30
MIN_METADATA_BYTES = 2**10
MAX_METADATA_BYTES = 2**20
MAX_SECONDS = 86_400.0
# Clients may ping this often, also between calls; who pings more often is sent away by gRPC.
MIN_PING_SECONDS = 10.0


@dataclass(frozen=True)
class ServerLimits:
    """0 seconds mean never, where said."""

    message_bytes: int = 8 * 2**20  # a prompt of a million token ids
    metadata_bytes: int = 16 * 2**10
    # Per connection. Far above what runs and waits, so that a full queue is refused with a reason and does not stall.
    streams: int = 4096
    request_seconds: float = 3600.0  # every request ends by then; asking for more is refused
    wait_seconds: float = 600.0  # to the first token
    connection_age_seconds: float = 1800.0  # 0: never
    connection_grace_seconds: float | None = None  # None: request_seconds, so that no stream is cut
    keepalive_seconds: float = 30.0
    keepalive_timeout_seconds: float = 10.0

    @property
    def grace_seconds(self) -> float:
        grace = self.connection_grace_seconds
        return self.request_seconds if grace is None else grace


def inference_channel(limits: ServerLimits) -> list[tuple[str, int]]:
    """gRPC options of the inference port."""
    options = _channel(limits, limits.message_bytes)
    if limits.connection_age_seconds:
        # GOAWAY sends a client back to DNS, where it finds the pods that were added since; open streams go on.
        options.append(("grpc.max_connection_age_ms", _ms(limits.connection_age_seconds)))
        options.append(("grpc.max_connection_age_grace_ms", _ms(limits.grace_seconds)))
    return options


def control_channel(limits: ServerLimits) -> list[tuple[str, int]]:
    """gRPC options of the control port, whose one client stays."""
    return _channel(limits, CONTROL_MESSAGE_BYTES)


def _channel(limits: ServerLimits, message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else two servers share a taken port without a word
        ("grpc.max_receive_message_length", message_bytes),
        # Equal, because gRPC refuses at random between the two.
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.max_concurrent_streams", limits.streams),
        # A client that vanished without a word is noticed after the sum of these two, and its requests are aborted.
        ("grpc.keepalive_time_ms", _ms(limits.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _ms(limits.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(MIN_PING_SECONDS)),
    ]


def _ms(seconds: float) -> int:
    return max(1, round(1000 * seconds))
