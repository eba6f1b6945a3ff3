"""Routes of the OpenAI port, and what holds for all of them: keys, bodies, errors, and connections in a drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import time
from typing import Any

from aiohttp import web
from shiftprotos import contract

from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.openai.auth import ApiKeys
from shiftruntime.server.openai.chat import chat
from shiftruntime.server.openai.completions import complete
from shiftruntime.server.openai.errors import HttpError
from shiftruntime.server.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    read,
)
from shiftruntime.server.openai.respond import deliver, hold_little, json_response
from shiftruntime.server.openai.tokens import detokenize, tokenize
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.unsupported import UNSUPPORTED

log = logging.getLogger(__name__)

# A body that is not there by then will not come.
BODY_SECONDS = 30.0
_OPEN = frozenset({"/health"})  # probes carry no key
_ABSENT = ("/v1/embeddings", "/v1/responses", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/images/generations")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OpenAiRoutes:
    def __init__(self, frontend: FrontEnd, keys: ApiKeys | None) -> None:
        self._frontend = frontend
        self._keys = keys
        self._created = int(time())

    def application(self) -> web.Application:
        most = self._frontend.options.limits.message_bytes
        app = web.Application(middlewares=[self._guarded], client_max_size=most)
        app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name:.+}", self._model),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.get("/health", self._health),
                web.get("/version", self._version),
                *(web.post(path, _absent) for path in _ABSENT),
            ]
        )
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every answer is JSON, also a refusal, and taken in time; a pod that is not ready keeps no connection."""
        hold_little(request)
        try:
            self._check_key(request)
            response = await handler(request)
        except Refusal as refusal:
            response = _error(HttpError.of(refusal))
        except HttpError as error:
            response = _error(error)
        except web.HTTPException as error:
            response = _error(HttpError(error.status, "HttpError", f"{request.method} {request.path}: {error.reason}"))
        except Exception:
            log.exception("%s %s failed", request.method, request.rel_url.raw_path)
            response = _error(HttpError(500, contract.REASON_INTERNAL, "the server failed; its log has the reason"))
        if not self._frontend.lifecycle.ready:
            response.force_close()
        if isinstance(response, web.Response):  # a stream has been written by now
            await deliver(request, response)
        return response

    def _check_key(self, request: web.Request) -> None:
        if self._keys is None or request.path in _OPEN:
            return
        if not self._keys.matches(request.headers.get("Authorization", "")):
            raise HttpError(
                401,
                contract.REFUSED_UNAUTHENTICATED,
                'this server needs "Authorization: Bearer <key>" with a known key',
            )

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await complete(self._frontend, request, read(await _body(request), CompletionRequest))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await chat(self._frontend, request, read(await _body(request), ChatRequest))

    async def _tokenize(self, request: web.Request) -> web.Response:
        return json_response(await tokenize(self._frontend, read(await _body(request), TokenizeRequest)))

    async def _detokenize(self, request: web.Request) -> web.Response:
        return json_response(await detokenize(self._frontend, read(await _body(request), DetokenizeRequest)))

    async def _models(self, request: web.Request) -> web.Response:
        return json_response({"object": "list", "data": [self._card()]})

    async def _model(self, request: web.Request) -> web.Response:
        card = self._card()
        if request.match_info["name"] != card["id"]:
            raise HttpError(
                404, "ModelNotFound", f"model {request.match_info['name'][:64]!r} is not served here; {card['id']!r} is"
            )
        return json_response(card)

    def _card(self) -> dict[str, Any]:
        """Raises Refusal while the pod starts."""
        limits = self._frontend.model.limits
        return {
            "id": limits.served_name,
            "object": "model",
            "created": self._created,
            "owned_by": "shift",
            "max_model_len": limits.max_model_len,
        }

    async def _health(self, request: web.Request) -> web.Response:
        lifecycle = self._frontend.lifecycle
        return json_response({"status": lifecycle.sentence()}, 200 if lifecycle.ready else 503)

    async def _version(self, request: web.Request) -> web.Response:
        return json_response({"version": self._frontend.version})


async def _body(request: web.Request) -> bytes:
    """Raises HttpError for one that is too large or too slow."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise HttpError(408, "BodyTooSlow", f"the body did not arrive within {BODY_SECONDS:g} s") from error
    except web.HTTPRequestEntityTooLarge as error:
        most = request.client_max_size
        raise HttpError(
            413, "BodyTooLarge", f"the body is above {most} bytes; --max-message sets what this server takes"
        ) from error


async def _absent(request: web.Request) -> web.Response:
    what = UNSUPPORTED["embeddings"] if "embeddings" in request.path else "use /v1/chat/completions or /v1/completions"
    raise HttpError(404, "Unsupported", f"{request.path} is not supported; {what}")


def _error(error: HttpError) -> web.Response:
    return json_response(error.body(), error.status, error.headers)
