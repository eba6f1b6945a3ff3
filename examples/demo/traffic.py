"""Runs the gRPC client in a pod of the cluster's network."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from examples.demo.settings import BURST_SECONDS, CLIENT, CLIENT_POD, NAMESPACE, TARGET
from localcluster.errors import ClusterError
from localcluster.settings import Settings
from localcluster.tools import kubectl, kubectl_path

_READY_SECONDS = 60
_GENERATE_SECONDS = 90.0
_END_SECONDS = 200.0


def start_client(settings: Settings) -> None:
    """A pod that idles until it is told what to send; a new one each time, since a ConfigMap reaches old ones late."""
    kubectl("delete", "pod", "shift-client", "-n", NAMESPACE, "--ignore-not-found", "--wait", settings=settings)
    config_map = kubectl(
        "create", "configmap", "shift-client", "-n", NAMESPACE, f"--from-file={CLIENT}", "--dry-run=client", "-o",
        "yaml", settings=settings,
    )  # fmt: skip
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", settings=settings, stdin=config_map)
    kubectl("apply", "--server-side", "-n", NAMESPACE, "-f", str(CLIENT_POD), settings=settings)
    kubectl(
        "wait", "pod/shift-client", "-n", NAMESPACE, "--for=condition=Ready", f"--timeout={_READY_SECONDS}s",
        settings=settings,
    )  # fmt: skip


def generate(prompt: str, max_tokens: int, settings: Settings) -> dict[str, Any]:
    """One request; its text appears as it streams. Returns the client's figures."""
    process = _exec(("generate", prompt, "--max-tokens", str(max_tokens)), settings, stdin=subprocess.DEVNULL)
    assert process.stdout is not None, "started with a pipe"
    tail = ""
    while character := process.stdout.read(1):
        print(character, end="", flush=True)
        tail += character
    if process.wait(_GENERATE_SECONDS):
        raise ClusterError("GenerateFailed", f"the client ended with {process.returncode}: {tail[-500:]}")
    figures: dict[str, Any] = json.loads(tail.strip().splitlines()[-1])
    return figures


class Burst:
    """A running burst; ``figures`` are there after it ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.figures: dict[str, Any] = {}

    def end(self) -> None:
        """Closes the client's input, which ends the burst when the requests in flight have ended."""
        output, _ = self._process.communicate(timeout=_END_SECONDS)
        # gRPC's own log, on the same stream, may begin in the middle of a line.
        decode = json.JSONDecoder().raw_decode
        lines = [decode(line)[0] for line in output.splitlines() if line.startswith("{")]
        self.figures = next((line for line in reversed(lines) if "prompts" in line), {})
        if self._process.returncode or not self.figures:
            raise ClusterError("BurstFailed", f"the client ended with {self._process.returncode}: {output[-500:]}")


@contextmanager
def burst(settings: Settings, *, prompts: int, prompt_tokens: int, decodes: int) -> Iterator[Burst]:
    """Long prompts beside running decodes, for as long as the block runs."""
    arguments = (
        *("burst", "--prompts", str(prompts), "--prompt-tokens", str(prompt_tokens), "--decodes", str(decodes)),
        *("--seconds", str(BURST_SECONDS), "--until-eof"),
    )
    process = _exec(arguments, settings, stdin=subprocess.PIPE)
    running = Burst(process)
    try:
        yield running
        running.end()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10.0)


def _exec(arguments: tuple[str, ...], settings: Settings, stdin: int) -> subprocess.Popen[str]:
    command = [
        *(kubectl_path(), "exec", "-i", "-n", NAMESPACE, "shift-client", "--"),
        *("python3", "/client/shift_client.py", "--target", TARGET, *arguments),
    ]
    return subprocess.Popen(
        command,
        env={**os.environ, "KUBECONFIG": str(settings.kubeconfig)},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
