"""Options of the OpenAI port and of chats, and its TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import pytest
from helpers.certificates import Authority
from shiftruntime.server.chat.tools import Family, family_of
from shiftruntime.server.options import parse
from shiftruntime.server.tls import TlsFiles
from shiftruntime.server.usage import UsageError


def test_the_port_is_on_by_default_and_0_turns_it_off() -> None:
    assert parse(["serve", "m"], {}).openai_port == 8000
    assert parse(["serve", "m", "--openai-port", "0"], {}).openai_port is None
    assert parse(["serve", "m", "--openai-port", "any"], {}).openai_port == 0
    with pytest.raises(UsageError, match="65536 is outside"):
        parse(["serve", "m", "--openai-port", "65536"], {})
    with pytest.raises(UsageError, match="--openai-port 9000 is also --port"):
        parse(["serve", "m", "--openai-port", "9000"], {})


def test_files_and_families_of_chats() -> None:
    options = parse(
        ["serve", "m", "--chat-template", "t.jinja", "--api-key-file", "k", "--tool-call-parser", "mistral"], {}
    )
    assert (options.chat_template, options.api_key_file) == (Path("t.jinja"), Path("k"))
    assert options.tool_calls is Family.MISTRAL
    assert parse(["serve", "m", "--tool-call-parser", "auto"], {}).tool_calls is None
    with pytest.raises(UsageError, match="'xml' is none of auto, hermes"):
        parse(["serve", "m", "--tool-call-parser", "xml"], {})


@pytest.mark.parametrize(
    ("template", "family"),
    [("[TOOL_CALLS]", Family.MISTRAL), ("<tool_call>", Family.HERMES), ("<|python_tag|>", Family.LLAMA),
     ("<|start_header_id|>{{ tools }}", Family.LLAMA), ("<start_of_turn>", Family.PYTHON)],
)  # fmt: skip
def test_a_template_shows_its_family(template: str, family: Family) -> None:
    assert family_of(template) is family


async def status(pod, context: ssl.SSLContext) -> int:
    """Over a connection of its own."""
    url = f"https://localhost:{pod.ports.openai}/health"
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as answer:
        return answer.status


def trusting(authority: Authority, client: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    if client is not None:
        context.load_cert_chain(*authority.sign("client").write(client))
    return context


async def test_tls_of_grpc_holds_for_http_as_well(start_pod, tmp_path: Path) -> None:
    authority = Authority("ours")
    pod = await start_pod(tls=TlsFiles(*authority.sign("server").write(tmp_path)))
    assert await status(pod, trusting(authority)) == 200
    with pytest.raises(aiohttp.ClientConnectorError):
        await status(pod, trusting(Authority("theirs")))
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://localhost:{pod.ports.openai}/health")


async def test_a_new_certificate_serves_new_connections_of_http(start_pod, tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    pod = await start_pod(tls=TlsFiles(*old.sign("server").write(tmp_path)))
    assert await status(pod, trusting(old)) == 200
    (tmp_path / "tls.crt").write_bytes(b"broken")
    assert await status(pod, trusting(old)) == 200, "the last good files stay in force"
    new.sign("server").write(tmp_path)
    assert await status(pod, trusting(new)) == 200
    with pytest.raises(aiohttp.ClientConnectorError):
        await status(pod, trusting(old))


async def test_mutual_tls_holds_for_http(start_pod, tmp_path: Path) -> None:
    authority = Authority("ours")
    ca, client = tmp_path / "ca.crt", tmp_path / "client"
    ca.write_bytes(authority.certificate)
    client.mkdir()
    pod = await start_pod(tls=TlsFiles(*authority.sign("server").write(tmp_path), ca))
    assert await status(pod, trusting(authority, client)) == 200
    with pytest.raises(aiohttp.ClientError):
        await status(pod, trusting(authority))
