"""The cluster, through the person's own kubectl: its configuration, contexts and log-in work as they know them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from shiftprotos import contract

Object = dict[str, Any]
RESOURCE = f"{contract.PLURAL}.{contract.API_GROUP}"
# What the API server may take, and what kubectl with its log-in may take.
REQUEST_SECONDS = 30
CALL_SECONDS = 120.0


class KubectlError(Exception):
    """kubectl failed. The message is empty where it has said why itself."""


class TooManyError(KubectlError):
    """The API server answers 429: not now. Its words were shown."""


@dataclass(frozen=True)
class Kubectl:
    """`flags` are those of kubectl that choose cluster, user and namespace."""

    flags: tuple[str, ...] = ()

    def get(self, name: str, resource: str = RESOURCE) -> Object:
        return self._json("get", resource, name, "-o", "json")

    def find(self, name: str, resource: str = RESOURCE) -> Object | None:
        """None when it is not there."""
        text = self._run("get", resource, name, "-o", "json", "--ignore-not-found")
        return _parsed(text) if text.strip() else None

    def list(self, resource: str = RESOURCE, *options: str) -> list[Object]:
        found: list[Object] = self._json("get", resource, "-o", "json", *options).get("items", [])
        return found

    def patch(self, name: str, changed: Object) -> Object:
        return self._json("patch", RESOURCE, name, "--type=merge", "-p", json.dumps(changed), "-o", "json")

    def try_patch(self, name: str, changed: Object) -> Object:
        """As it would be, with what the API server notes of it; nothing is stored."""
        trial = ("--dry-run=server", "--show-managed-fields")
        return self._json("patch", RESOURCE, name, "--type=merge", "-p", json.dumps(changed), "-o", "json", *trial)

    def delete(self, name: str, resource: str) -> None:
        """Gracefully, and without waiting for the end."""
        self._run("delete", resource, name, "--wait=false", "-o", "name")

    def evict(self, namespace: str, name: str, uid: str) -> None:
        """Gracefully, without waiting for the end. Raises TooManyError when a PodDisruptionBudget forbids it now."""
        where = f"{self._path_of_server()}/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        # Its stderr is looked at, and shown all the same; a log-in was asked for by the calls before.
        done = self._start(("create", "--raw", where, "-f", "-"), json.dumps(body).encode(), subprocess.PIPE)
        said = done.stderr.decode(errors="replace")
        sys.stderr.write(said)
        if done.returncode:
            raise TooManyError("") if "(TooManyRequests)" in said else KubectlError("")
        answer = done.stdout.decode(errors="replace")
        if _parsed(answer).get("status") != "Success":
            raise KubectlError(f"{where} did not answer as the API server does: {answer[:80]!r}")

    def _path_of_server(self) -> str:
        """A raw path is taken from the root of the host, where behind a proxy the API server is not."""
        asked = ("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
        done = self._start(asked, stderr=subprocess.DEVNULL)
        # Without a kubeconfig, in a pod, there is no proxy.
        return "" if done.returncode else urlsplit(done.stdout.decode().strip()).path.rstrip("/")

    def _json(self, *arguments: str) -> Object:
        return _parsed(self._run(*arguments))

    def _run(self, *arguments: str) -> str:
        # stderr stays that of the terminal: warnings, log-in prompts and errors are shown as they are.
        done = self._start(arguments)
        if done.returncode:
            raise KubectlError("")
        return done.stdout.decode(errors="replace")

    def _start(
        self, arguments: Sequence[str], given: bytes | None = None, stderr: int | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """To its end. `given` is its stdin, else that of the terminal."""
        command = ["kubectl", *arguments, *self.flags, f"--request-timeout={REQUEST_SECONDS}s"]
        try:
            return subprocess.run(
                command, input=given, stdout=subprocess.PIPE, stderr=stderr, timeout=CALL_SECONDS, check=False
            )
        except FileNotFoundError as error:
            raise KubectlError("kubectl is not on PATH; install it, or add its folder to PATH") from error
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {arguments[0]} did not end within {CALL_SECONDS:.0f} s") from error


def _parsed(text: str) -> Object:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise KubectlError(f"kubectl answered what is no JSON: {text[:80]!r}") from error
    if not isinstance(parsed, dict):
        raise KubectlError(f"kubectl answered no object: {text[:80]!r}")
    return parsed
