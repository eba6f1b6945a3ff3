"""The control port: who may ask there, and over what."""

from __future__ import annotations

import grpc
from shiftprotos import contract
from shiftprotos.v1 import control_pb2_grpc

from shiftruntime.errors import StartupError
from shiftruntime.server.auth import BearerInterceptor, TokenFile
from shiftruntime.server.environment import Environment
from shiftruntime.server.limits import ServerLimits, control_channel
from shiftruntime.server.tls import TlsCredentials, TlsFiles


def control_server(
    service: control_pb2_grpc.ControlServicer, environment: Environment, limits: ServerLimits
) -> tuple[grpc.aio.Server, TokenFile | None]:
    """And the token that it asks for, None without one. Raises StartupError when that cannot be read."""
    file = environment.control_token_file
    token = None if file is None else TokenFile(file)
    interceptors = () if token is None else (BearerInterceptor(token),)
    server = grpc.aio.server(interceptors=interceptors, options=control_channel(limits))
    control_pb2_grpc.add_ControlServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    return server, token


def control_tls(environment: Environment) -> grpc.ServerCredentials | None:
    """Of the control port alone, as the operator mounts it; raises StartupError."""
    folder = environment.control_tls_folder
    if folder is None:
        return None
    files = TlsFiles(
        folder / contract.CONTROL_TLS_CERTIFICATE,
        folder / contract.CONTROL_TLS_KEY,
        folder / contract.CONTROL_TLS_AUTHORITIES,
    )
    return TlsCredentials(files).grpc()


def bind(server: grpc.aio.Server, host: str, port: int, option: str, tls: grpc.ServerCredentials | None) -> int:
    """The port that was bound; raises StartupError."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    except RuntimeError as error:
        raise cannot_listen(host, port, option, str(error)) from error
    if bound == 0:
        raise cannot_listen(host, port, option, "the address cannot be bound")
    return bound


def cannot_listen(host: str, port: int, option: str, why: str) -> StartupError:
    return StartupError(
        contract.REASON_INVALID_ARGUMENT,
        f"cannot listen on {host} port {port}: {why}; free the port or choose another with {option}",
    )
