"""A pod of a model that is fetched, as the operator renders it: its containers as processes on this machine.

Command, arguments, environment and Secrets come from the template; what is mounted becomes folders.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shiftoperator import certificates, manifests
from shiftoperator import spec as specs
from shiftprotos import contract

Object = dict[str, Any]

SECONDS = 240.0
CONTROL = manifests.Control("t" * 40, certificates.renewed(None, "team/chat", datetime.now(UTC)))
# The root of a container is read-only: nobody can make a folder here, root neither.
_HOME = "/proc/nobody"


@dataclass(frozen=True)
class Pod:
    """`cache` stands for the volume, which outlives the pod; `variables` for `runtime.env`; `secret` is what the Secret
    of `model.secretRef` has now."""

    spec: Object
    folder: Path
    cache: Path
    variables: dict[str, str] = field(default_factory=dict)
    secret: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder / "termination-log"

    def container(self, kind: str) -> Object:
        env = [{"name": name, "value": value} for name, value in self.variables.items()]
        parsed = specs.parse({"parallelism": {"gpus": 1}, **self.spec, "runtime": {"env": env}})
        found: Object = manifests.pod_template("chat", parsed, "h", "image")["spec"][kind][0]
        return found

    def command(self, kind: str, **changed: str) -> list[str]:
        """`changed` options are those that two processes of one machine cannot share."""
        container = self.container(kind)
        assert container["command"] == ["shift-runtime"]
        arguments = [self._here(container, argument) for argument in container["args"]]
        options = {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        for option, value in {"--host": "127.0.0.1", **options}.items():
            arguments[arguments.index(option) + 1] = value
        return [sys.executable, "-m", "shiftruntime", *arguments]

    def environment(self, kind: str) -> dict[str, str]:
        container = self.container(kind)
        self._mount_control()
        rendered = {
            variable["name"]: self._here(container, variable.get("value", "pod-of-chat"))
            for variable in container["env"]
        }
        secrets = {name for source in container.get("envFrom", ()) for name in source["secretRef"].values()}
        assert secrets <= {"opens"}, "no other Secret was asked for"
        ours = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL")}
        return {**ours, "HOME": _HOME, **(self.secret if secrets else {}), **rendered}

    def fetch(self, port: int, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """`prepare` runs in the new process before the step."""
        return subprocess.Popen(
            self.command("initContainers", control_port=str(port)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment("initContainers"),
            preexec_fn=prepare,
        )

    def serve(self, control: int, ops: int) -> subprocess.Popen[str]:
        command = self.command("containers", port="0", control_port=str(control), ops_port=str(ops))
        return subprocess.Popen(
            [*command, "--openai-port", "0"], stderr=subprocess.PIPE, text=True, env=self.environment("containers")
        )

    def _here(self, container: Object, value: str) -> str:
        """A path inside the container, on this machine."""
        folders = {mount["mountPath"]: self._volume(mount["name"]) for mount in container["volumeMounts"]}
        for inside, outside in {**folders, container["terminationMessagePath"]: self.log}.items():
            if value == inside or value.startswith(f"{inside}/"):
                return str(outside) + value.removeprefix(inside)
        return value

    def _volume(self, name: str) -> Path:
        folder = self.cache if name == "cache" else self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _mount_control(self) -> None:
        for name, content in CONTROL.for_pods().items():
            (self._volume("control") / name).write_bytes(content)
        assert (self.folder / "control" / contract.CONTROL_TOKEN_KEY).exists()


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


def fetched(pod: Pod, prepare: Callable[[], None] | None = None) -> tuple[int, str, str]:
    """What `said` gives of the whole step."""
    with ended(pod.fetch(free_port(), prepare)) as step:
        return said(step)
