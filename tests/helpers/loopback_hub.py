"""A stand-in for Hugging Face's hub on loopback: the three requests that its client makes, with ranges and faults."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from helpers.loopback_http import loopback_http

PAUSE_SECONDS = 120.0
LARGE_BYTES = 1024  # files from this size on are kept by their SHA-256, as the hub does


@dataclass
class Hub:
    """Repositories by name; tests change them and look at what was asked."""

    endpoint: str = ""
    commit: str = "a" * 40
    files: dict[str, bytes] = field(default_factory=dict)  # of the one repository, team/tiny
    private: bool = False
    down: bool = False
    cut_after: int | None = None  # bytes of the next large download, then the connection breaks
    token: str = ""  # without it nothing is found
    refusal: tuple[int, dict[str, str]] | None = None  # status and headers of every answer
    storage: str = ""  # where large files are redirected to, as to a store with signed addresses
    sent: dict[str, bytes] = field(default_factory=dict)  # in place of what was announced, as long as it
    pause: threading.Event | None = None  # large downloads stop in their middle until it is set
    requests: list[str] = field(default_factory=list)  # "GET name" and "GET name from OFFSET" of files


@contextmanager
def loopback_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files=dict(files))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if hub.down:
                self._send(503, b"down")
            elif hub.refusal is not None:
                self._send(hub.refusal[0], b"", hub.refusal[1])
            elif hub.private or (hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}"):
                self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            elif path.startswith("/api/models/team/tiny"):
                self._describe(path.partition("/revision/")[2])
            elif path.startswith("/team/tiny/resolve/"):
                self._file(path.split("/", 5)[5], body=body)
            else:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _describe(self, revision: str) -> None:
            if revision not in ("main", hub.commit):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [_sibling(name, content) for name, content in hub.files.items()]
            answer = {"id": "team/tiny", "modelId": "team/tiny", "sha": hub.commit, "siblings": siblings}
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str, *, body: bool) -> None:
            if name not in hub.files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            content = hub.files[name]
            headers = {"ETag": f'"{_tag(content)}"', "X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
            if hub.storage and len(content) >= LARGE_BYTES:
                linked = {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
                self._send(302, b"", headers | linked | {"Location": f"{hub.storage}/{name}?signature=x"})
                return
            if not body:
                self._send(200, content, headers, body=False)
                return
            content = hub.sent.get(name, content)
            asked = self.headers.get("Range", "")
            first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            hub.requests.append(f"GET {name} from {first}" if first else f"GET {name}")
            if first:
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            cut = hub.cut_after if len(content) >= LARGE_BYTES else None
            hub.cut_after = None if cut else hub.cut_after
            pause = hub.pause if len(content) >= LARGE_BYTES else None
            self._send(206 if first else 200, content[first:], headers, cut=cut, pause=pause)

        def _send(
            self, status: int, content: bytes, headers: dict[str, str] | None = None, *, body: bool = True,
            cut: int | None = None, pause: threading.Event | None = None,
        ) -> None:  # fmt: skip
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and self.command != "HEAD":
                middle = len(content) // 2 if pause is not None else 0
                self.wfile.write(content[:middle])
                if pause is not None:
                    pause.wait(PAUSE_SECONDS)
                self.wfile.write(content[middle:cut])
            if cut is not None:
                self.close_connection = True

    with loopback_http(Handler) as hub.endpoint:
        yield hub


def _tag(content: bytes) -> str:
    """What the hub gives as the ETag: of a large file its SHA-256."""
    if len(content) >= LARGE_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sibling(name: str, content: bytes) -> dict[str, object]:
    described: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": _tag(content)}
    if len(content) >= LARGE_BYTES:
        described["lfs"] = {"sha256": _tag(content), "size": len(content), "pointerSize": 100}
    return described
