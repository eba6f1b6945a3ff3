"""The operator's end of the control channel against the runtime's: mutual TLS, while certificates are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from shiftoperator.certificates import AUTHORITY_LIFE, KEEP_AFTER_USE, TRUST_BEFORE_USE, Certificates, renewed
from shiftoperator.errors import RuntimeCallError
from shiftoperator.runtime_client import Endpoint, RuntimeClient
from shiftoperator.snapshot import Access, ClientTls
from shiftoperator.spec import Policy
from shiftprotos import contract
from shiftprotos.v1 import control_pb2, control_pb2_grpc
from shiftruntime.server.tls import TlsCredentials, TlsFiles

TOKEN = "t" * 40


class Control(control_pb2_grpc.ControlServicer):  # type: ignore[misc]
    async def GetState(self, request: Any, context: Any) -> Any:
        return control_pb2.GetStateResponse(ready=True)


@dataclass
class Pod:
    folder: Path
    endpoint: Endpoint

    def mount(self, content: Mapping[str, bytes]) -> None:
        """As the kubelet replaces a file of a mounted Secret."""
        for name, data in content.items():
            new = self.folder / f"{name}.new"
            new.write_bytes(data)
            new.replace(self.folder / name)


def now() -> datetime:
    return datetime.now(UTC)


def access(held: Certificates) -> Access:
    return Access(TOKEN, ClientTls(held.trusted, held.client.certificate, held.client.key))


@pytest.fixture
def held() -> Certificates:
    """Old enough that its authority is to be replaced."""
    made = renewed(None, "team/gemma", now() - AUTHORITY_LIFE * 0.7)
    # Its leaves were renewed on the way.
    return renewed(made, "team/gemma", now() - AUTHORITY_LIFE * 0.05)


@pytest.fixture
async def pod(tmp_path: Path, held: Certificates) -> AsyncIterator[Pod]:
    pod = Pod(tmp_path, Endpoint("", "", ""))
    pod.mount(held.for_pods())
    files = TlsFiles(*(tmp_path / name for name in ("tls.crt", "tls.key", "ca.crt")))
    server = grpc.aio.server()
    control_pb2_grpc.add_ControlServicer_to_server(Control(), server)
    port = server.add_secure_port("127.0.0.1:0", TlsCredentials(files).grpc())
    await server.start()
    pod.endpoint = Endpoint("u1", "p1", f"127.0.0.1:{port}", tls=True)
    yield pod
    await server.stop(None)


@pytest.fixture
async def client() -> AsyncIterator[RuntimeClient]:
    client = RuntimeClient()
    yield client
    await client.close()


async def test_the_pods_own_authority_opens_the_port(pod: Pod, client: RuntimeClient, held: Certificates) -> None:
    assert (await client.get_state(pod.endpoint, access(held))).ready


@pytest.mark.parametrize("client_of", ["nobody", "another", "another, trusting this"])
async def test_others_are_refused(pod: Pod, client: RuntimeClient, held: Certificates, client_of: str) -> None:
    other = renewed(None, "team/gemma", now())
    tls = ClientTls(other.trusted, other.client.certificate, other.client.key)
    if client_of == "another, trusting this":
        tls = ClientTls(held.trusted, other.client.certificate, other.client.key)
    endpoint = pod.endpoint if client_of != "nobody" else Endpoint("u1", "p1", pod.endpoint.address)
    with pytest.raises(RuntimeCallError) as refused:
        await asyncio.wait_for(client.set_policy(endpoint, Access(TOKEN, tls), Policy(), 1), 10)
    assert refused.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


async def test_a_pod_of_another_authority_is_not_believed(pod: Pod, client: RuntimeClient, held: Certificates) -> None:
    other = renewed(None, "team/gemma", now())
    tls = ClientTls(other.trusted, held.client.certificate, held.client.key)
    with pytest.raises(RuntimeCallError):
        await asyncio.wait_for(client.set_policy(pod.endpoint, Access(TOKEN, tls), Policy(), 1), 10)


async def test_rotation_under_load_fails_no_call(pod: Pod, client: RuntimeClient, held: Certificates) -> None:
    """The pod's files follow late, and each new state of the Secret opens a new connection."""
    calls = 0

    async def call(with_: Certificates) -> None:
        nonlocal calls
        for _ in range(10):
            assert (await client.get_state(pod.endpoint, access(with_))).ready
            calls += 1

    authorities = {held.authority.certificate}
    at = now() - TRUST_BEFORE_USE - KEEP_AFTER_USE  # nothing may be of the future
    for wait in (timedelta(), TRUST_BEFORE_USE, KEEP_AFTER_USE):
        at += wait
        after = renewed(held, "team/gemma", at)
        assert after != held
        await asyncio.gather(call(held), call(after))  # the pod has the old files
        pod.mount(after.for_pods())
        await asyncio.gather(call(after), call(after))
        held = after
        authorities.add(held.authority.certificate)
    assert len(authorities) == 2
    assert held.trusted == held.authority.certificate
    assert calls == 120


async def test_without_stored_certificates_a_pod_is_not_asked_in_the_clear(pod: Pod, client: RuntimeClient) -> None:
    with pytest.raises(RuntimeCallError, match="not stored yet"):
        await client.get_state(pod.endpoint, Access(TOKEN))


def test_the_runtime_reads_the_files_that_the_operator_writes(held: Certificates) -> None:
    assert set(held.for_pods()) == {
        contract.CONTROL_TLS_CERTIFICATE,
        contract.CONTROL_TLS_KEY,
        contract.CONTROL_TLS_AUTHORITIES,
    }
