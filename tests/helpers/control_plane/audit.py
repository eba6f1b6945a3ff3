"""What was asked of the API server, by whom, and how it was answered."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LONGEST_LINE = 1 << 16
WRITES = ("create", "update", "patch", "delete", "deletecollection")


@dataclass(frozen=True)
class Request:
    """One answered request; of a watch its start and its end are two."""

    user: str
    verb: str  # as RBAC names it
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    time: str  # RFC 3339, when it was answered
    user_agent: str
    uri: str

    @property
    def writes(self) -> bool:
        return self.verb in WRITES

    @property
    def path(self) -> str:
        """`deployments`, `pods/status`, `leases.coordination.k8s.io` …, as RBAC names it."""
        full = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f"{full}.{self.group}" if self.group else full


class AuditLog:
    """Grows while it is read. Positions make it possible to look at what came since."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def position(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def complete(self) -> int:
        """The position after the last complete line."""
        with self._path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            while end > 0:
                begin = max(0, end - _LONGEST_LINE)
                log.seek(begin)
                newline = log.read(end - begin).rfind(b"\n")
                if newline >= 0:
                    return begin + newline + 1
                end = begin
        return 0

    def requests(
        self, since: int = 0, keep: Callable[[Request], bool] = lambda _: True, marker: bytes = b"", until: int = -1
    ) -> Iterator[Request]:
        """Complete lines only: one may be in the making. Lines without `marker` are not read, which is much faster."""
        position = since
        with self._path.open("rb") as log:
            log.seek(since)
            for line in log:
                position += len(line)
                if not line.endswith(b"\n") or position > until >= 0:
                    return
                if marker not in line:
                    continue
                request = _request(json.loads(line))
                if keep(request):
                    yield request

    def of_user(self, user: str, since: int = 0) -> list[Request]:
        return list(self.requests(since, lambda request: request.user == user))


def _request(event: dict[str, Any]) -> Request:
    target = event.get("objectRef", {})
    return Request(
        user=event["user"]["username"],
        verb=event["verb"],
        group=target.get("apiGroup", ""),
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        time=event["stageTimestamp"],
        user_agent=event.get("userAgent", ""),
        uri=event["requestURI"],
    )
