"""Asks each runtime pod for its state: a port-forward to the control port, with the token from the Secret."""

from __future__ import annotations

import base64
import os
import re
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from shiftprotos import contract
from shiftprotos.v1 import control_pb2, control_pb2_grpc

from examples.demo.settings import NAME, NAMESPACE
from localcluster.errors import ClusterError
from localcluster.settings import Settings
from localcluster.tools import kubeconfig, kubectl, kubectl_path

_FORWARD_SECONDS = 15.0
_CALL_SECONDS = 15.0
_PORT = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


def pod_names(settings: Settings) -> list[str]:
    """Runtime pods that are not being deleted."""
    template = '{range .items[?(!@.metadata.deletionTimestamp)]}{.metadata.name}{"\\n"}{end}'
    selector = f"{contract.LABEL_DEPLOYMENT}={NAME}"
    return kubectl(
        "get", "pods", "-n", NAMESPACE, "-l", selector, "-o", f"jsonpath={template}", settings=settings
    ).split()


def restarts(settings: Settings) -> int:
    """Container restarts of all runtime pods together."""
    selector = f"{contract.LABEL_DEPLOYMENT}={NAME}"
    path = "jsonpath={.items[*].status.containerStatuses[*].restartCount}"
    return sum(map(int, kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", path, settings=settings).split()))


def state(pod: str, settings: Settings) -> control_pb2.GetStateResponse:
    """Gears, costs, crossover and load of one pod."""
    encoded = kubectl(
        "get", "secret", f"{NAME}-control", "-n", NAMESPACE, "-o", f"jsonpath={{.data.{contract.CONTROL_TOKEN_KEY}}}",
        settings=settings,
    )  # fmt: skip
    token = base64.b64decode(encoded).decode()
    with forwarded(pod, contract.CONTROL_PORT, settings) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return control_pb2_grpc.ControlStub(channel).GetState(
            control_pb2.GetStateRequest(),
            timeout=_CALL_SECONDS,
            metadata=((contract.AUTHORIZATION_METADATA, f"Bearer {token}"),),
        )


@contextmanager
def forwarded(pod: str, port: int, settings: Settings) -> Iterator[int]:
    """A local port that leads to the pod's."""
    command = [kubectl_path(), "port-forward", "-n", NAMESPACE, f"pod/{pod}", f":{port}"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "KUBECONFIG": str(kubeconfig(settings))},
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
