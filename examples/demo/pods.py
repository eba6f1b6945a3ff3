"""Asks runtime pods for their state: a port-forward to the control port, with what the operator shows them."""

from __future__ import annotations

import base64
import json
import os
import re
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from shiftprotos import contract
from shiftprotos.v1 import control_pb2, control_pb2_grpc

from examples.demo.settings import NAME, NAMESPACE
from localcluster.errors import ClusterError
from localcluster.settings import Settings
from localcluster.tools import kubectl, kubectl_path

_FORWARD_SECONDS = 15.0
_CALL_SECONDS = 30.0
_PORT = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


def pod_names(settings: Settings) -> list[str]:
    """Runtime pods that are not being deleted."""
    return [pod["metadata"]["name"] for pod in _pods(settings) if "deletionTimestamp" not in pod["metadata"]]


def restarts(settings: Settings) -> int:
    """Container restarts of all runtime pods together."""
    return sum(
        container["restartCount"]
        for pod in _pods(settings)
        for container in pod.get("status", {}).get("containerStatuses", [])
    )


def _pods(settings: Settings) -> list[dict[str, Any]]:
    selector = f"{contract.LABEL_DEPLOYMENT}={NAME}"
    items: list[dict[str, Any]] = json.loads(
        kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "json", settings=settings)
    )["items"]
    return items


def state(pod: str, settings: Settings) -> control_pb2.GetStateResponse:
    """Gears, costs, crossover and load of one pod."""
    with control(pod, settings) as ask:
        return ask()


@contextmanager
def control(
    pod: str, settings: Settings, authority: Mapping[str, bytes] | None = None
) -> Iterator[Callable[[], control_pb2.GetStateResponse]]:
    """Asks a pod for its state, over one connection; with the certificates that are in use unless others are given."""
    # What the operator shows the pods; only who may read its Secrets can do this.
    authority = authority or secret(f"{NAME}-control-ca", settings)
    token = secret(f"{NAME}-control", settings)[contract.CONTROL_TOKEN_KEY].decode()
    credentials = grpc.ssl_channel_credentials(
        authority[contract.CONTROL_TLS_AUTHORITIES], authority["client.key"], authority["client.crt"]
    )
    options = (("grpc.ssl_target_name_override", contract.CONTROL_TLS_NAME),)
    with (
        forwarded(pod, contract.CONTROL_PORT, settings) as port,
        grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel,
    ):
        stub = control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]
        metadata = ((contract.AUTHORIZATION_METADATA, f"Bearer {token}"),)
        yield lambda: stub.GetState(control_pb2.GetStateRequest(), timeout=_CALL_SECONDS, metadata=metadata)


def secret(name: str, settings: Settings) -> dict[str, bytes]:
    found = json.loads(kubectl("get", "secret", name, "-n", NAMESPACE, "-o", "json", settings=settings))
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


@contextmanager
def forwarded(pod: str, port: int, settings: Settings) -> Iterator[int]:
    """A local port that leads to the pod's."""
    command = [kubectl_path(), "port-forward", "-n", NAMESPACE, f"pod/{pod}", f":{port}"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "KUBECONFIG": str(settings.kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield _local_port(process, pod)
    finally:
        process.terminate()
        process.wait(5.0)
        if process.stdout is not None:
            process.stdout.close()


def _local_port(process: subprocess.Popen[str], pod: str) -> int:
    assert process.stdout is not None, "started with a pipe"
    deadline = time.monotonic() + _FORWARD_SECONDS
    said = ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline and process.poll() is None:
            if selector.select(0.5):
                said += process.stdout.readline()
                if match := _PORT.search(said):
                    return int(match[1])
    raise ClusterError("PortForward", f"no port-forward to {pod} within {_FORWARD_SECONDS:.0f} s: {said.strip()}")
