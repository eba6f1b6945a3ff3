"""Calls to the control port of runtime pods. The only package that knows gRPC."""

from shiftoperator.runtime_client.calls import (
    Accepted,
    Endpoint,
    RuntimeClient,
    endpoints,
)
from shiftoperator.runtime_client.wire import policy_to_wire, state_from_wire

__all__ = ["Accepted", "Endpoint", "RuntimeClient", "endpoints", "policy_to_wire", "state_from_wire"]
