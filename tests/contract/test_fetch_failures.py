"""Why a model does not come: what the step says at its end stands in the status of the resource, with what to do."""

from __future__ import annotations

import json
import resource as limits
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.fetch_pods import Pod, fetched
from helpers.fetched_models import MODEL, OTHERS, WEIGHTS
from helpers.loopback_answers import Answers, loopback_answers
from helpers.loopback_hub import Hub, loopback_hub
from shiftoperator import manifests, status
from shiftoperator.snapshot import Snapshot, pod_from
from shiftprotos import contract

pytestmark = pytest.mark.timeout(600)

Object = dict[str, Any]
TOKEN = "hf_a-token-that-nobody-may-read"
FROM_HUB: Object = {"model": {"uri": "hf://team/tiny", "secretRef": {"name": "opens"}}}
FROM_BUCKET: Object = {"model": {"uri": "s3://models/team/tiny", "secretRef": {"name": "opens"}}}
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": TOKEN}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with loopback_hub(MODEL | OTHERS) as started:
        yield started


def shown(spec: Object, log: Path) -> tuple[str, str]:
    """Reason and sentence of ModelLoaded, when the kubelet has picked up the termination log."""
    ended = {"exitCode": 1, "message": log.read_text()[:4096], "finishedAt": datetime.now(UTC).isoformat()}
    spec = {"parallelism": {"gpus": 1}, **spec}
    hash_ = manifests.template_hash(spec)
    pod = pod_from(
        {
            "metadata": {"name": "p1", "uid": "u", "annotations": {contract.ANNOTATION_TEMPLATE_HASH: hash_}},
            "spec": {},
            "status": {
                "initContainerStatuses": [
                    {"name": "shift-fetch", "restartCount": 0, "state": {"terminated": ended}},
                ]
            },
        }
    )
    metadata = {"namespace": "team", "name": "chat", "uid": "u", "generation": 1}
    resource = {"kind": contract.KIND, "metadata": metadata, "spec": spec}
    outcome = status.Outcome(1, hash_, 0, status.Scaling(False, "Disabled", "off"))
    built = status.build(Snapshot(resource, {}, (pod,)), outcome, [], "2026-01-01T00:00:00Z")
    said = {c["type"]: c for c in built["conditions"]}
    loaded, ready = said[contract.CONDITION_MODEL_LOADED], said[contract.CONDITION_READY]
    assert (loaded["reason"], loaded["message"]) == (ready["reason"], ready["message"])
    return loaded["reason"], loaded["message"]


def refused(pod: Pod, reason: str, words: tuple[str, ...], prepare: Callable[[], None] | None = None) -> None:
    code, _, rest = fetched(pod, prepare)
    assert code == 1, rest
    told = json.loads(pod.log.read_text())
    assert told["reason"] == reason, told
    found, message = shown(pod.spec, pod.log)
    assert found == reason
    for word in words:
        assert word in told["message"]
        assert word in message
    assert TOKEN not in rest + pod.log.read_text() + message


def gated(hub: Hub) -> None:
    hub.refusal = (403, {"X-Error-Code": "GatedRepo"})


def wrong_token(hub: Hub) -> None:
    hub.refusal = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})


def forbidden(hub: Hub) -> None:
    hub.refusal = (403, {"X-Error-Message": "the token has no right to read"})


def missing(hub: Hub) -> None:
    hub.refusal = (404, {"X-Error-Code": "RepoNotFound"})


def damaged(hub: Hub) -> None:
    hub.sent["model.safetensors"] = bytes(len(WEIGHTS))


@pytest.mark.parametrize(
    ("change", "model", "reason", "words"),
    [
        (missing, {}, "ModelNotFound", ("hf://team/tiny@main does not exist", "HF_TOKEN")),
        (wrong_token, {}, "ModelNotFound", ("refuses the token in HF_TOKEN (401)", "give a valid token")),
        (forbidden, {}, "ModelNotFound", ("refuses the token in HF_TOKEN (403)", "give a valid token")),
        (gated, {}, "ModelNotFound", ("hf://team/tiny@main is gated: accept its terms",)),
        (None, {"revision": "v9"}, "ModelNotFound", ("team/tiny has no revision 'v9'; name one of its branches",)),
        (damaged, {}, "ModelDamaged", ("model.safetensors has SHA-256", "after 3 downloads, the hub says", "proxy")),
    ],
)
def test_what_a_hub_refuses(
    hub: Hub,
    tmp_path: Path,
    change: Callable[[Hub], None] | None,
    model: Object,
    reason: str,
    words: tuple[str, ...],
) -> None:
    if change is not None:
        change(hub)
    spec = {"model": {**FROM_HUB["model"], **model}}
    pod = Pod(spec, tmp_path, tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint}, {"HF_TOKEN": TOKEN})
    refused(pod, reason, words)


def error(code: str, more: str = "") -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message>{more}</Error>'.encode()


@pytest.mark.parametrize(
    ("answers", "reason", "words"),
    [
        (
            Answers(400, error("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")),
            "FetchFailed",
            ("bucket models lies in region eu-west-1, and AWS_REGION is us-east-2; set AWS_REGION=eu-west-1",),
        ),
        (
            Answers(301, error("PermanentRedirect"), {"x-amz-bucket-region": "eu-west-1"}),
            "FetchFailed",
            ("bucket models lies in another region, and AWS_REGION is us-east-2; set AWS_REGION to the bucket's",),
        ),
        (
            Answers(404, error("NoSuchBucket")),
            "ModelNotFound",
            ("s3://models/team/tiny: there is no bucket models; correct the URI",),
        ),
        (
            Answers(403, error("RequestTimeTooSkewed")),
            "FetchFailed",
            ("this machine's clock is wrong", "set the clock of its node (NTP)"),
        ),
        (
            Answers(403, error("InvalidAccessKeyId")),
            "ModelNotFound",
            ("s3://models/team/tiny may not be read with the credentials", "AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
        ),
        (
            Answers(400, error("ExpiredToken")),
            "ModelNotFound",
            ("s3://models/team/tiny may not be read with the credentials", "ExpiredToken"),
        ),
    ],
)
def test_what_a_bucket_refuses(tmp_path: Path, answers: Answers, reason: str, words: tuple[str, ...]) -> None:
    with loopback_answers(answers) as started:
        variables = {"AWS_ENDPOINT_URL": started.endpoint, "AWS_REGION": "us-east-2"}
        refused(Pod(FROM_BUCKET, tmp_path, tmp_path / "cache", variables, KEYS), reason, words)


def test_a_volume_that_is_full_is_named_with_what_is_needed(hub: Hub, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the kernel refuses the same write."""

    def little_room() -> None:
        limits.setrlimit(limits.RLIMIT_FSIZE, (len(WEIGHTS) // 2, len(WEIGHTS) // 2))

    total = sum(map(len, MODEL.values()))
    pod = Pod(FROM_HUB, tmp_path, tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint})
    refused(pod, "FetchFailed", ("has no room", f"the model has {total} bytes", "enlarge that volume"), little_room)
    assert len([asked for asked in hub.requests if "model.safetensors" in asked]) == 1, "a full volume stays full"


def test_a_token_is_not_taken_to_another_host(hub: Hub, tmp_path: Path) -> None:
    hub.token = TOKEN
    with loopback_answers(Answers(200, WEIGHTS)) as storage:
        hub.storage = storage.endpoint
        pod = Pod(FROM_HUB, tmp_path, tmp_path / "cache", {"HF_ENDPOINT": hub.endpoint}, {"HF_TOKEN": TOKEN})
        code, path, rest = fetched(pod)
    assert code == 0, rest
    assert (Path(path) / "model.safetensors").read_bytes() == WEIGHTS
    assert storage.asked == ["/model.safetensors?signature=x -"]


@pytest.mark.parametrize("status", [302, 307])
def test_keys_of_a_bucket_are_not_taken_to_another_host(tmp_path: Path, status: int) -> None:
    with loopback_answers(Answers(200, b"")) as other:
        with loopback_answers(Answers(status, headers={"Location": f"{other.endpoint}/elsewhere"})) as bucket:
            pod = Pod(FROM_BUCKET, tmp_path, tmp_path / "cache", {"AWS_ENDPOINT_URL": bucket.endpoint}, KEYS)
            code, _, rest = fetched(pod)
        assert code == 1, rest
    assert bucket.asked
    assert not [asked for asked in other.asked if not asked.endswith(" -")]
