"""The step that the operator renders before the runtime, run as it stands, and the runtime on what it left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from helpers.fetch_pods import CONTROL, SECONDS, Pod, ended, fetched, free_port, said
from helpers.fetched_models import MODEL, OTHERS
from helpers.loopback_hub import Hub, loopback_hub
from helpers.tiny_models import save_llama
from moto.server import ThreadedMotoServer
from shiftoperator import certificates
from shiftoperator.errors import RuntimeCallError
from shiftoperator.runtime_client import Endpoint, RuntimeClient
from shiftoperator.snapshot import Access, ClientTls, RuntimeState
from shiftprotos import contract
from shiftruntime.models.fetch import cached_model

pytestmark = pytest.mark.timeout(600)

Object = dict[str, Any]
SECRET = "hf_a-token-that-nobody-may-read"


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
    # What it holds belongs to the process: without this, to the tests before as well.
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", b"", timeout=10).close()
    client(variables).create_bucket(Bucket="models")
    put(variables, MODEL | OTHERS, "team/tiny")
    try:
        yield variables
    finally:
        server.stop()


def client(bucket: dict[str, str]) -> Any:
    return boto3.client(
        "s3", endpoint_url=bucket["AWS_ENDPOINT_URL"], aws_access_key_id="a", aws_secret_access_key="b",
        region_name="us-east-1",
    )  # fmt: skip


def put(bucket: dict[str, str], files: dict[str, bytes], prefix: str) -> None:
    for name, content in files.items():
        client(bucket).put_object(Bucket="models", Key=f"{prefix}/{name}", Body=content)


def shared_out(bucket: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What stands in `runtime.env`, and what in the Secret."""
    secret = {name: value for name, value in bucket.items() if "ACCESS_KEY" in name}
    return {name: value for name, value in bucket.items() if name not in secret}, secret


FROM_HUB: Object = {"model": {"uri": "hf://team/tiny", "secretRef": {"name": "opens"}}}
FROM_BUCKET: Object = {"model": {"uri": "s3://models/team/tiny", "secretRef": {"name": "opens"}}}
SMALL: Object = {
    "engine": {"maxNumSeqs": 2, "maxBatchedTokens": 16, "maxModelLen": 64},
    "shift": {"calibration": {"mode": "Keep"}},
}


def test_what_the_step_fetched_is_served_without_a_network(llama: dict[str, bytes], tmp_path: Path) -> None:
    spec = {"model": {**FROM_HUB["model"], "dtype": "float32", "revision": "main"}, **SMALL}
    with loopback_hub(llama) as hub:
        hub.token, hub.pause = SECRET, threading.Event()
        pod = Pod(spec, tmp_path / "pod", tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint}, {"HF_TOKEN": SECRET})
        port = free_port()
        with ended(pod.fetch(port)) as step:
            state = asyncio.run(progress(step, port))
            hub.pause.set()
            code, path, rest = said(step)
        assert code == 0, rest
    [phase] = state.phases
    assert (phase.name, phase.done) == (contract.PHASE_FETCH, False)
    assert phase.total_bytes == sum(len(llama[name]) for name in os.listdir(path) if name in llama)
    assert "phase fetch" in rest
    assert "phase verify" in rest
    assert SECRET not in rest + path
    # From here on nobody listens at the hub's address.
    serve(pod)
    code, again, rest = fetched(pod)
    assert (code, again) == (0, path), rest
    assert "the hub cannot be reached" in rest


def test_a_bucket_is_served_from_the_version_that_was_fetched(
    bucket: dict[str, str], llama: dict[str, bytes], tmp_path: Path
) -> None:
    """Objects that are overwritten afterwards change nothing for the pod that runs, nor for its restart."""
    put(bucket, llama, "team/llama")
    spec = {"model": {"uri": "s3://models/team/llama", "secretRef": {"name": "opens"}, "dtype": "float32"}, **SMALL}
    pod = Pod(spec, tmp_path / "pod", tmp_path / "cache", *shared_out(bucket))
    code, path, rest = fetched(pod)
    assert code == 0, rest

    def replaced() -> None:
        put(bucket, {"config.json": b"{}"}, "team/llama")
        code, newer, rest = fetched(Pod(spec, tmp_path / "other", tmp_path / "cache", *shared_out(bucket)))
        assert code == 0, rest
        assert newer != path
        assert {file.name: file.read_bytes() for file in Path(path).iterdir() if file.name in llama} == llama

    serve(pod, replaced)


def serve(pod: Pod, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Until it is ready; its costs are kept beside the model."""
    ops = free_port()
    with ended(pod.serve(free_port(), ops)) as runtime:
        deadline = time.monotonic() + SECONDS
        while not is_ready(ops):
            assert runtime.poll() is None, said(runtime)
            assert time.monotonic() < deadline, "not ready"
            time.sleep(0.1)
        meanwhile()
        assert is_ready(ops)
        runtime.send_signal(signal.SIGTERM)
        code, _, rest = said(runtime)
    assert code == 0, rest
    assert "phase fetch" not in rest
    assert SECRET not in rest
    assert (pod.cache / "calibration-chat.json").is_file()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_the_runtime_never_has_the_secret(hub: Hub, tmp_path: Path) -> None:
    pod = Pod(FROM_HUB, tmp_path, tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint}, {"HF_TOKEN": SECRET})
    assert pod.environment("initContainers")["HF_TOKEN"] == SECRET
    assert "HF_TOKEN" not in pod.environment("containers")


def test_two_pods_that_share_a_claim_fetch_once(hub: Hub, tmp_path: Path) -> None:
    variables = {"HF_ENDPOINT": hub.endpoint}
    spec = {**FROM_HUB, "cache": {"claimName": "shared"}}
    pods = [Pod(spec, tmp_path / name, tmp_path / "cache", variables) for name in ("one", "two")]
    with ended(pods[0].fetch(free_port())) as first, ended(pods[1].fetch(free_port())) as second:
        ends = [said(first), said(second)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[0][1] == ends[1][1]
    assert sorted(asked.split()[1] for asked in hub.requests) == sorted(MODEL)


def test_a_pod_whose_neighbour_is_killed_goes_on_by_itself(hub: Hub, tmp_path: Path) -> None:
    hub.pause = threading.Event()
    spec = {**FROM_HUB, "cache": {"claimName": "shared"}}
    pods = [Pod(spec, tmp_path / name, tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint}) for name in ("one", "two")]
    ports = [free_port(), free_port()]
    with ended(pods[0].fetch(ports[0])) as first:
        asyncio.run(progress(first, ports[0]))
        with ended(pods[1].fetch(ports[1])) as second:
            told = asyncio.run(progress(second, ports[1]))
            first.kill()
            hub.pause.set()
            code, path, rest = said(second)
    assert told.phases[0].total_bytes == sum(map(len, MODEL.values())), "it says how far the other one is"
    assert code == 0, rest
    assert (Path(path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


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
    code, path, rest = fetched(pod)
    assert code == 0, rest
    assert (Path(path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_pods_of_two_revisions_have_their_own(hub: Hub, tmp_path: Path) -> None:
    """Each restarts on its own, also when the hub has the other one only."""

    def pod(name: str, revision: str) -> Pod:
        spec = {"model": {**FROM_HUB["model"], "revision": revision}, "cache": {"claimName": "shared"}}
        return Pod(spec, tmp_path / name, tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint})

    old = pod("old", hub.commit)
    code, first, rest = fetched(old)
    assert code == 0, rest
    hub.commit, hub.files["tokenizer.json"] = "b" * 40, b'{"new": 1}'
    code, second, rest = fetched(pod("new", hub.commit))
    assert code == 0, rest
    assert (Path(second) / "tokenizer.json").read_bytes() == b'{"new": 1}'
    code, again, rest = fetched(old)
    assert (code, again) == (0, first), rest
    assert (Path(first) / "tokenizer.json").read_bytes() == MODEL["tokenizer.json"]
    for uri, path in ((f"hf://team/tiny@{'a' * 40}", first), (f"hf://team/tiny@{'b' * 40}", second)):
        assert str(cached_model(uri, tmp_path / "cache" / "models")) == path


def test_a_secret_that_was_rotated_opens_the_hub_at_the_next_start(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_the-new-one"
    before = Pod(FROM_HUB, tmp_path, tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint}, {"HF_TOKEN": SECRET})
    code, _, rest = fetched(before)
    assert code == 1, rest
    told = json.loads(before.log.read_text())
    assert told["reason"] == contract.REASON_MODEL_NOT_FOUND
    assert "HF_TOKEN" in told["message"]
    code, path, after = fetched(replace(before, secret={"HF_TOKEN": hub.token}))
    assert code == 0, after
    assert (Path(path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    for token in (SECRET, hub.token):
        assert token not in rest + after + before.log.read_text()


def test_a_model_that_the_cache_cannot_hold_is_refused_by_its_size(bucket: dict[str, str], tmp_path: Path) -> None:
    big = {**FROM_BUCKET, "cache": {"sizeLimit": "1Mi"}, "observability": {"logs": {"format": "json"}}}
    pod = Pod(big, tmp_path, tmp_path / "cache", *shared_out(bucket))
    code, _, rest = fetched(pod)
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
    pod = Pod(FROM_BUCKET, tmp_path, tmp_path / "cache", *shared_out(bucket))
    code, path, rest = fetched(pod)
    assert code == 0, rest
    assert (Path(path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert cached_model("s3://models/team/tiny", tmp_path / "cache" / "models") == Path(path)
