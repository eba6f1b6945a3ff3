"""The step that the operator renders before the runtime, run as it stands, and the runtime on what it left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from helpers.fetched_models import MODEL, OTHERS
from helpers.loopback_hub import Hub, loopback_hub
from helpers.tiny_models import save_llama
from moto.server import ThreadedMotoServer
from shiftoperator import certificates, manifests
from shiftoperator import spec as specs
from shiftoperator.errors import RuntimeCallError
from shiftoperator.runtime_client import Endpoint, RuntimeClient
from shiftoperator.snapshot import Access, ClientTls, RuntimeState
from shiftprotos import contract
from shiftruntime.models.fetch import cached_model

pytestmark = pytest.mark.timeout(600)

Object = dict[str, Any]
SECONDS = 240.0
SECRET = "hf_a-token-that-nobody-may-read"
CONTROL = manifests.Control("t" * 40, certificates.renewed(None, "team/chat", datetime.now(UTC)))
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}


@dataclass(frozen=True)
class Pod:
    """One pod's containers as processes; `cache` stands for the volume, which outlives the pod."""

    spec: Object
    folder: Path
    cache: Path
    variables: dict[str, str]

    @property
    def template(self) -> Object:
        parsed = specs.parse({"parallelism": {"gpus": 1}, **self.spec})
        return manifests.pod_template("chat", parsed, "h", "image")["spec"]

    @property
    def log(self) -> Path:
        return self.folder / "termination-log"

    def command(self, kind: str, **changed: str) -> list[str]:
        container = self.template[kind][0]
        assert container["command"] == ["shift-runtime"]
        arguments = [argument.replace("/cache", str(self.cache)) for argument in container["args"]]
        for option, value in {
            "--host": "127.0.0.1",
            **{f"--{k.replace('_', '-')}": v for k, v in changed.items()},
        }.items():
            arguments[arguments.index(option) + 1] = value
        return [sys.executable, "-m", "shiftruntime", *arguments]

    def environment(self) -> dict[str, str]:
        control = self.folder / "control"
        control.mkdir(parents=True, exist_ok=True)
        for name, content in CONTROL.for_pods().items():
            (control / name).write_bytes(content)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AWS_"))},
            "HOME": str(self.folder),
            contract.ENV_CONTROL_TOKEN_FILE: str(control / contract.CONTROL_TOKEN_KEY),
            contract.ENV_CONTROL_TLS_FOLDER: str(control),
            contract.ENV_TERMINATION_LOG: str(self.log),
            **self.variables,
        }

    def fetch(self, port: int) -> subprocess.Popen[str]:
        command = self.command("initContainers", control_port=str(port))
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment()
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, path and everything else that it said."""
    path, rest = process.communicate(timeout=SECONDS)
    return process.returncode, (path or "").strip(), rest


async def progress(step: subprocess.Popen[str], port: int) -> RuntimeState:
    """What the operator is told as soon as the step knows how much there is to fetch."""
    tls = ClientTls(
        *(CONTROL.certificates.as_data()[key] for key in ("ca.crt", certificates.CLIENT, certificates.CLIENT_KEY))
    )
    client, deadline = RuntimeClient(), time.monotonic() + SECONDS
    try:
        while True:
            try:
                state = await client.get_state(
                    Endpoint("u", "p", f"127.0.0.1:{port}", tls=True), Access(CONTROL.token, tls)
                )
                if state.phases and state.phases[0].total_bytes:
                    return state
            except RuntimeCallError as error:
                if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                    raise
            assert step.poll() is None, said(step)
            assert time.monotonic() < deadline, "the step did not say how far it is"
            await asyncio.sleep(0.1)
    finally:
        await client.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_llama(folder, max_position_embeddings=128)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with loopback_hub(MODEL | OTHERS) as started:
        yield started


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """The environment that opens it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }  # fmt: skip
    client = boto3.client(
        "s3", endpoint_url=variables["AWS_ENDPOINT_URL"], aws_access_key_id="a", aws_secret_access_key="b",
        region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket="models")
    for name, content in (MODEL | OTHERS).items():
        client.put_object(Bucket="models", Key=f"team/tiny/{name}", Body=content)
    try:
        yield variables
    finally:
        server.stop()


FROM_HUB: Object = {"model": {"uri": "hf://team/tiny", "secretRef": {"name": "hub"}}}
FROM_BUCKET: Object = {"model": {"uri": "s3://models/team/tiny", "secretRef": {"name": "bucket"}}}


def test_what_the_step_fetched_is_served_without_a_network(llama: dict[str, bytes], tmp_path: Path) -> None:
    small = {"maxNumSeqs": 2, "maxBatchedTokens": 16, "maxModelLen": 64}
    spec = {
        "model": {**FROM_HUB["model"], "dtype": "float32", "revision": "main"},
        "engine": small,
        "shift": {"calibration": {"mode": "Keep"}},
    }
    with loopback_hub(llama) as hub:
        hub.token, hub.pause = SECRET, threading.Event()
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": SECRET}
        port = free_port()
        with ended(Pod(spec, tmp_path, tmp_path / "cache", variables).fetch(port)) as step:
            state = asyncio.run(progress(step, port))
            hub.pause.set()
            code, path, rest = said(step)
        assert code == 0, rest
    [phase] = state.phases
    assert (phase.name, phase.done) == (contract.PHASE_FETCH, False)
    assert phase.total_bytes == sum(len(llama[name]) for name in os.listdir(path) if name in llama)
    assert "phase fetch" in rest
    assert SECRET not in rest + path
    serve_offline(Pod(spec, tmp_path / "main", tmp_path / "cache", UNREACHABLE))


def serve_offline(pod: Pod) -> None:
    """Until it is ready; its costs are kept beside the model."""
    ops = free_port()
    command = pod.command("containers", port="0", control_port=str(free_port()), ops_port=str(ops))
    with ended(
        subprocess.Popen([*command, "--openai-port", "0"], stderr=subprocess.PIPE, text=True, env=pod.environment())
    ) as runtime:
        deadline = time.monotonic() + SECONDS
        while not is_ready(ops):
            assert runtime.poll() is None, said(runtime)
            assert time.monotonic() < deadline, "not ready"
            time.sleep(0.1)
        runtime.send_signal(signal.SIGTERM)
        code, _, rest = said(runtime)
    assert code == 0, rest
    assert "phase fetch" not in rest
    assert (pod.cache / "calibration-chat.json").is_file()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_two_pods_that_share_a_claim_fetch_once(hub: Hub, tmp_path: Path) -> None:
    variables = {"HF_ENDPOINT": hub.endpoint}
    spec = {**FROM_HUB, "cache": {"claimName": "shared"}}
    pods = [Pod(spec, tmp_path / name, tmp_path / "cache", variables) for name in ("one", "two")]
    with ended(pods[0].fetch(free_port())) as first, ended(pods[1].fetch(free_port())) as second:
        ends = [said(first), said(second)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[0][1] == ends[1][1]
    assert sorted(asked.split()[1] for asked in hub.requests) == sorted(MODEL)


def test_a_step_that_was_stopped_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.pause = threading.Event()
    pod, port = Pod(FROM_HUB, tmp_path, tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint}), free_port()
    with ended(pod.fetch(port)) as step:
        asyncio.run(progress(step, port))
        step.send_signal(signal.SIGTERM)
        code, _, rest = said(step)
    assert code == 1, rest
    assert json.loads(pod.log.read_text())["reason"] == contract.REASON_FETCH_FAILED
    hub.pause.set()
    with ended(pod.fetch(free_port())) as step:
        code, path, rest = said(step)
    assert code == 0, rest
    assert (Path(path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_model_that_the_cache_cannot_hold_is_refused_by_its_size(bucket: dict[str, str], tmp_path: Path) -> None:
    big = {**FROM_BUCKET, "cache": {"sizeLimit": "1Mi"}, "observability": {"logs": {"format": "json"}}}
    pod = Pod(big, tmp_path, tmp_path / "cache", bucket)
    with ended(pod.fetch(free_port())) as step:
        code, _, rest = said(step)
    assert code == 1, rest
    told = json.loads(pod.log.read_text())
    total = sum(map(len, MODEL.values()))
    assert told["reason"] == contract.REASON_FETCH_FAILED
    assert f"has {total} bytes, and its cache may hold {2**20}" in told["message"]
    lines = [line for line in rest.splitlines() if not line.startswith("shift-runtime: ")]
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines), "as observability.logs asks for"
    assert SECRET not in rest + pod.log.read_text()


def test_a_bucket_is_fetched_and_later_served_without_it(bucket: dict[str, str], tmp_path: Path) -> None:
    pod = Pod(FROM_BUCKET, tmp_path, tmp_path / "cache", bucket)
    with ended(pod.fetch(free_port())) as step:
        code, path, rest = said(step)
    assert code == 0, rest
    assert (Path(path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert cached_model("s3://models/team/tiny", tmp_path / "cache" / "models") == Path(path)


def test_a_closed_repository_is_told_without_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.token = "another"
    pod = Pod(FROM_HUB, tmp_path, tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": SECRET})
    with ended(pod.fetch(free_port())) as step:
        code, _, rest = said(step)
    assert code == 1, rest
    told = json.loads(pod.log.read_text())
    assert told["reason"] == contract.REASON_MODEL_NOT_FOUND
    assert "HF_TOKEN" in told["message"]
    assert SECRET not in rest + pod.log.read_text()
