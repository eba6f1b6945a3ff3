"""TLS and mutual TLS of the gRPC ports, with certificates that are replaced while the pod serves."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace

import grpc
import pytest
from helpers.certificates import Authority
from shiftprotos.v1 import control_pb2, control_pb2_grpc, inference_pb2_grpc
from shiftprotos.v1 import inference_pb2 as pb
from shiftruntime.server.app import serve
from shiftruntime.server.tls import TlsFiles

SECONDS = 10.0
REFUSED_SECONDS = 2.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("ours")


def trusting(authority, client=None) -> grpc.ChannelCredentials:
    key, chain = (client.key, client.certificate) if client else (None, None)
    return grpc.ssl_channel_credentials(authority.certificate, key, chain)


async def info(port: int, credentials, seconds: float = SECONDS) -> pb.GetModelInfoResponse:
    """Over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        return await stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=seconds)


async def unavailable(port: int, credentials) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await info(port, credentials, REFUSED_SECONDS)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def shown_certificate(port: int) -> bytes:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=SECONDS).encode()


async def test_a_client_that_trusts_the_authority_is_served(start_pod, tmp_path, authority):
    files = TlsFiles(*authority.sign("server").write(tmp_path))
    pod = await start_pod(tls=files)
    assert (await info(pod.ports.inference, trusting(authority))).served_name == "fake"
    await unavailable(pod.ports.inference, trusting(Authority("theirs")))
    with pytest.raises(grpc.aio.AioRpcError):  # plaintext
        await pod.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=REFUSED_SECONDS)
    state = await pod.control.GetState(control_pb2.GetStateRequest(), timeout=SECONDS)
    assert state.ready  # the operator's port stays as it is


async def test_the_control_port_speaks_tls_when_told(start_pod, tmp_path, authority):
    pod = await start_pod(tls=TlsFiles(*authority.sign("server").write(tmp_path)), tls_control=True)
    async with grpc.aio.secure_channel(f"localhost:{pod.ports.control}", trusting(authority)) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        assert (await stub.GetState(control_pb2.GetStateRequest(), timeout=SECONDS)).ready


async def test_a_client_without_a_certificate_of_the_authority_is_refused(start_pod, tmp_path, authority):
    client_ca = tmp_path / "ca.crt"
    client_ca.write_bytes(authority.certificate)
    certificate, key = authority.sign("server").write(tmp_path)
    pod = await start_pod(tls=TlsFiles(certificate, key, client_ca))
    port = pod.ports.inference
    assert (await info(port, trusting(authority, authority.sign("client")))).served_name == "fake"
    await unavailable(port, trusting(authority))
    await unavailable(port, trusting(authority, Authority("theirs").sign("client")))


async def test_a_rotated_certificate_serves_new_connections_and_open_streams_go_on(start_pod, tmp_path, authority):
    first = authority.sign("first")
    pod = await start_pod(tls=TlsFiles(*first.write(tmp_path)))
    port = pod.ports.inference
    pod.engine.flow.clear()
    async with grpc.aio.secure_channel(f"localhost:{port}", trusting(authority)) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(pb.GenerateRequest(text="hi"), timeout=SECONDS)
        await call.initial_metadata()
        other = Authority("other")
        other.sign("second").write(tmp_path)
        assert (await info(port, trusting(other))).served_name == "fake"
        await unavailable(port, trusting(authority))
        pod.engine.flow.set()
        assert "".join([response.text async for response in call]) == "hello world"


async def test_a_rotated_authority_of_clients_lets_its_own_in_and_the_old_ones_out(start_pod, tmp_path, authority):
    client_ca, other = tmp_path / "ca.crt", Authority("other")
    client_ca.write_bytes(authority.certificate)
    certificate, key = authority.sign("server").write(tmp_path)
    pod = await start_pod(tls=TlsFiles(certificate, key, client_ca))
    port = pod.ports.inference
    before, after = trusting(authority, authority.sign("client")), trusting(authority, other.sign("client"))
    assert (await info(port, before)).served_name == "fake"
    await unavailable(port, after)
    client_ca.write_bytes(other.certificate)
    assert (await info(port, after)).served_name == "fake"
    await unavailable(port, before)


async def test_a_broken_rotation_leaves_the_last_certificate_in_force(start_pod, tmp_path, authority, caplog):
    certificate, key = authority.sign("server").write(tmp_path)
    pod = await start_pod(tls=TlsFiles(certificate, key))
    key.write_bytes(authority.sign("another").key)  # half of a rotation
    assert (await info(pod.ports.inference, trusting(authority))).served_name == "fake"
    assert "no pair of certificate and key" in caplog.text
    key.unlink()
    assert (await info(pod.ports.inference, trusting(authority))).served_name == "fake"
    replacement = Authority("next")
    replacement.sign("server").write(tmp_path)
    assert (await info(pod.ports.inference, trusting(replacement))).served_name == "fake"


@pytest.mark.parametrize("wrong", ["missing", "no pair", "empty authority"])
async def test_wrong_files_end_the_start_with_their_names(
    serve_options, fake_engine_class, fake_text, tmp_path, authority, wrong
):
    certificate, key = authority.sign("server").write(tmp_path)
    client_ca = tmp_path / "ca.crt"
    client_ca.write_bytes(b"" if wrong == "empty authority" else authority.certificate)
    if wrong == "missing":
        certificate.unlink()
    if wrong == "no pair":
        key.write_bytes(authority.sign("another").key)
    options = replace(serve_options, tls=TlsFiles(certificate, key, client_ca))
    assert await serve(options, fake_engine_class, lambda model: fake_text) == 1
    words = json.loads(options.environment.termination_log.read_text())
    assert words["reason"] == "InvalidArgument"
    assert str(client_ca if wrong == "empty authority" else certificate) in words["message"]
