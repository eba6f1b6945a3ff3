"""A server on loopback that gives every request the same answer, and remembers who asked with which credentials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from helpers.loopback_http import loopback_http


@dataclass
class Answers:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    endpoint: str = ""
    # "PATH AUTHORIZATION" of each request; the second is - where there was none.
    asked: list[str] = field(default_factory=list)


@contextmanager
def loopback_answers(answers: Answers) -> Iterator[Answers]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked.append(f"{self.path} {self.headers.get('Authorization', '-')}")
            self.send_response(answers.status)
            for name, value in answers.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answers.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answers.body)

        do_HEAD = do_GET  # noqa: N815 - as the base class calls them

        def log_message(self, *_: object) -> None:
            pass

    with loopback_http(Handler) as answers.endpoint:
        yield answers
