"""An asyncio client of the API server for the stand-ins: patient, so that a restart of the API server is outlived."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

Object = dict[str, Any]

_PATIENCE_SECONDS = 120.0
_RETRY_SECONDS = 0.2
_PASSING = (429, 500, 502, 503, 504)


class Refused(Exception):
    """The API server answered, but not with success."""

    def __init__(self, status: int, call: str, text: str) -> None:
        super().__init__(f"{call} answered {status}: {text[:500]}")
        self.status = status


class ApiClient:
    def __init__(self, kubeconfig: Path) -> None:
        document = json.loads(kubeconfig.read_text())
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        self.url: str = cluster["server"]
        self.tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self.tls.load_cert_chain(user["client-certificate"], user["client-key"])

    async def open(self) -> None:
        self._connector = aiohttp.TCPConnector(ssl=self.tls, limit=100)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=10.0, sock_read=60.0),
        )

    async def close(self) -> None:
        await self._connector.close(abort_ssl=True)
        await self._session.close()
        # TLS connections of aiohttp end a moment after their session.
        await asyncio.sleep(0.25)

    async def call(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> Object:
        """Raises Refused for an answer that does not pass by itself."""
        payload = None if body is None else json.dumps(body)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                try:
                    async with self._session.request(
                        method, self.url + path, data=payload, headers={"Content-Type": content_type}
                    ) as response:
                        text = await response.text()
                except (aiohttp.ClientError, OSError):
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                if response.status in _PASSING:
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                if response.status >= 300:
                    raise Refused(response.status, f"{method} {path}", text)
                answer: Object = json.loads(text)
                return answer

    async def watch(
        self, path: str, seen: Callable[[str, Object], None], listed: Callable[[list[Object]], None]
    ) -> None:
        """Lists and watches for ever; after every gap it lists again."""
        while True:
            found = await self.call("GET", path)
            listed(found["items"])
            try:
                await self._follow(path, found["metadata"]["resourceVersion"], seen)
            except (aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(_RETRY_SECONDS)

    async def _follow(self, path: str, version: str, seen: Callable[[str, Object], None]) -> None:
        query = f"{path}?watch=true&resourceVersion={version}&timeoutSeconds=55"
        async with self._session.get(self.url + query) as response:
            # Objects may be longer than aiohttp's limit of a line.
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
                        return  # too old a version: list again
                    seen(event["type"], event["object"])
