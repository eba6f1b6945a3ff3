"""Stands between one operator and the API server, counts its calls and makes faults of the plan come true.

Plain HTTP towards the operator; the proxy itself holds the operator's certificate.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from helpers.api_faults import case as plans
from helpers.api_faults.case import Fault
from helpers.control_plane.apiclient import ApiClient

_HOP_HEADERS = {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "authorization"}
_NO_ANSWER = (aiohttp.ClientError, OSError, RuntimeError)  # the last when the session was closed
_LOOK_UP_SECONDS = 0.3
_STATUSES = {plans.CONFLICT: 409, plans.TOO_MANY: 429, plans.SERVER_ERROR: 500}
_REASONS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}


@dataclass
class Proxy:
    """`kill` ends the operator at once and starts it again. `log` has a line for each call and each strike."""

    kubeconfig: Path
    faults: tuple[Fault, ...]
    kill: Callable[[], None]
    log: list[str] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    port: int = 0

    async def start(self) -> None:
        self._counts: Counter[str] = Counter()
        self._stale_left = {fault: fault.amount for fault in self.faults if fault.kind == plans.STALE}
        self._dark_until = 0.0
        self._lists: dict[str, tuple[int, bytes]] = {}
        self._watches: list[web.BaseRequest] = []
        self._stopping = False
        self._began = time.monotonic()
        client = ApiClient(self.kubeconfig)
        self._upstream = client.url
        self._connector = aiohttp.TCPConnector(ssl=client.tls, limit=0)
        self._session = aiohttp.ClientSession(
            connector=self._connector, timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )  # fmt: skip
        # Open watches shall not hold up the end.
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        self._stopping = True
        # Watches look up so often; TLS connections of aiohttp end a moment after their session.
        await asyncio.sleep(_LOOK_UP_SECONDS + 0.1)
        await self._connector.close(abort_ssl=True)
        await self._session.close()
        await self._runner.cleanup()
        await asyncio.sleep(0.25)

    def kubeconfig_for_operator(self, folder: Path) -> Path:
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "test", "user": {"token": "not-looked-at"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path = folder / f"proxy-{self.port}.kubeconfig"
        path.write_text(json.dumps(document))
        return path

    # --- one call ---

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if time.monotonic() < self._dark_until:
            return self._cut_off(request)
        target = _target(request)
        if target is None:
            return await self._pass_on(request, body)
        if target == plans.WATCH_EVENT:
            return await self._watch(request)
        number = self._count(target)
        own = _own_target(request)
        fault = self._due(own, self._count(own)) if own else None
        fault = fault or self._due(target, number) or self._stale(request, target, number)
        self._note(f"{target} {number}: {request.method} {request.path_qs}" + (f"  <-- {fault}" if fault else ""))
        if fault is None:
            return await self._pass_on(request, body)
        self.struck[fault.kind] += 1
        return await self._strike(fault, request, body)

    async def _strike(self, fault: Fault, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        if fault.kind in _STATUSES:
            return _refusal(_STATUSES[fault.kind])
        if fault.kind == plans.STALL:
            await asyncio.sleep(fault.amount / 10)
            return await self._pass_on(request, body)
        if fault.kind == plans.STALE:
            status, answer = self._lists[request.path_qs]
            return web.Response(status=status, body=answer, content_type="application/json")
        if fault.kind == plans.CUT:
            for watch in self._watches:
                self._cut_off(watch)
            return await self._pass_on(request, body)
        if fault.kind == plans.OUTAGE:
            self._dark_until = time.monotonic() + fault.amount / 10
        elif fault.kind in (plans.LOSE_REPLY, plans.KILL_AFTER):
            await self._pass_on(request, body)
        if fault.kind in (plans.KILL_BEFORE, plans.KILL_AFTER):
            self.kill()
        return self._cut_off(request)

    def _count(self, target: str) -> int:
        self._counts[target] += 1
        return self._counts[target]

    def _due(self, target: str, number: int) -> Fault | None:
        """A stall or kill strikes one call, the others as many in a row as their amount says."""
        for fault in self.faults:
            if fault.kind == plans.STALE:
                continue
            once = fault.kind in (plans.STALL, plans.OUTAGE)
            last = fault.at if once else fault.at + fault.amount - 1
            if fault.target == target and fault.at <= number <= last:
                return fault
        return None

    def _stale(self, request: web.BaseRequest, target: str, number: int) -> Fault | None:
        """Not that very call but the next ones that can be answered as they were before."""
        if target != plans.READ or request.path_qs not in self._lists:
            return None
        for fault, left in self._stale_left.items():
            if number >= fault.at and left > 0:
                self._stale_left[fault] -= 1
                return fault
        return None

    async def _ask(self, request: web.BaseRequest, body: bytes) -> tuple[int, bytes]:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
        url = self._upstream + request.path_qs
        async with self._session.request(
            request.method, url, data=body or None, headers=headers, skip_auto_headers=("Content-Type",)
        ) as response:
            return response.status, await response.read()

    async def _pass_on(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        try:
            status, answer = await self._ask(request, body)
        except _NO_ANSWER:
            return self._cut_off(request)
        if request.method == "GET" and _is_list(request):
            self._lists[request.path_qs] = (status, answer)
        return web.Response(status=status, body=answer, content_type="application/json")

    def _cut_off(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)  # nobody reads it

    # --- watches ---

    async def _watch(self, request: web.BaseRequest) -> web.StreamResponse:
        self._watches.append(request)
        try:
            return await self._follow(request)
        except _NO_ANSWER:
            return self._cut_off(request)
        finally:
            self._watches = [watch for watch in self._watches if watch is not request]

    async def _follow(self, request: web.BaseRequest) -> web.StreamResponse:
        async with self._session.get(self._upstream + request.path_qs) as upstream:
            response = web.StreamResponse(status=upstream.status, headers={"Content-Type": "application/json"})
            await response.prepare(request)
            rest = b""
            while not upstream.content.at_eof() and not self._stopping:
                try:
                    async with asyncio.timeout(_LOOK_UP_SECONDS):
                        chunk = await upstream.content.readany()
                except TimeoutError:
                    continue
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    answer = self._event(line)
                    if answer is None:
                        continue
                    await response.write(answer + b"\n")
                    if answer is not line:
                        return response
            return response

    def _event(self, line: bytes) -> bytes | None:
        """The line, nothing when it is hidden, or another one."""
        if b'"type":"BOOKMARK"' in line[:40]:
            return line
        self._counts[plans.WATCH_EVENT] += 1
        fault = self._due(plans.WATCH_EVENT, self._counts[plans.WATCH_EVENT])
        if fault is None:
            return line
        self.struck[fault.kind] += 1
        self._note(f"event {self._counts[plans.WATCH_EVENT]}: {line[:60]!r}  <-- {fault}")
        if fault.kind == plans.HIDE:
            return None
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}
        return json.dumps({"type": "ERROR", "object": {**status, "message": "too old resource version"}}).encode()

    def _note(self, line: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:6.2f} {line}")


def _target(request: web.BaseRequest) -> str | None:
    """None: not to be struck."""
    parts = request.path.split("/")
    if "leases" in parts:
        return plans.LEASE
    if "events" in parts:
        return None
    if request.method != "GET":
        return plans.WRITE
    return plans.WATCH_EVENT if "watch" in request.query else plans.READ


def _own_target(request: web.BaseRequest) -> str | None:
    """Of writes that are counted by themselves too."""
    last = request.path.rpartition("/")[2]
    return last if request.method == "PATCH" and last in (plans.STATUS, plans.SCALE) else None


def _is_list(request: web.BaseRequest) -> bool:
    """/…/namespaces/NS/KIND: the kind comes last."""
    parts = request.path.split("/")
    return "namespaces" in parts and len(parts) - parts.index("namespaces") == 3


def _refusal(status: int) -> web.Response:
    body = {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": _REASONS[status], "code": status,
        "message": "a fault of the test",
    }  # fmt: skip
    return web.json_response(body, status=status, headers={"Retry-After": "1"} if status == 429 else {})
