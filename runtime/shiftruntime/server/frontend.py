"""What the services of one pod share: engine client, tokenizer, requests in flight, and where the pod stands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Protocol

import grpc
from prometheus_client import CollectorRegistry

from shiftruntime.engine.client import EngineClient, EngineFailed
from shiftruntime.engine.messages import EngineState, Ready
from shiftruntime.metrics import RequestMetrics
from shiftruntime.models.generation_config import GenerationDefaults
from shiftruntime.server.chat.template import ChatTemplates
from shiftruntime.server.flights import Flights
from shiftruntime.server.lifecycle import Lifecycle
from shiftruntime.server.options import ServeOptions
from shiftruntime.server.refusal import ENGINE_SILENT, Refusal
from shiftruntime.server.text import Decoder
from shiftruntime.server.validation import NO_DEFAULTS, Limits
from shiftruntime.server.vllm_metrics import VllmMetrics

log = logging.getLogger(__name__)

# Answered at once, also while a step runs.
STATE_SECONDS = 5.0
# So many long texts are tokenised at a time; they take turns with the event loop, and cores with the ranks.
_LONG_TEXTS = 4


class Text(Protocol):
    """The model's text side; shiftruntime.server.text_source.load makes it from the model's files."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    def encode(self, text: str, add_special_tokens: bool = True, at_most: int | None = None) -> list[int]: ...
    @property
    def longest_token_bytes(self) -> int | None: ...  # None: one token may stand for any amount of text
    @property
    def defaults(self) -> GenerationDefaults: ...
    @property
    def special_ids(self) -> Mapping[str, int]: ...
    @property
    def chat(self) -> ChatTemplates | None: ...
    @property
    def chat_error(self) -> str: ...  # why there are no chat templates
    def decoder(self, visible_special_ids: frozenset[int] = ...) -> Decoder: ...
    def token_bytes(self, token_id: int) -> bytes: ...  # special tokens have none
    def token_piece(self, token_id: int) -> bytes: ...  # special tokens as they are written


TextLoader = Callable[[str], Text]


@dataclass(frozen=True)
class Model:
    """Known once start-up is over."""

    ready: Ready
    text: Text
    limits: Limits
    long_texts: Executor = field(default_factory=partial(ThreadPoolExecutor, _LONG_TEXTS, "long-text"))


class FrontEnd:
    """Created in the event loop. Services read it; only server.app moves it through its stages."""

    def __init__(self, options: ServeOptions, engine: EngineClient) -> None:
        self.options = options
        self.engine = engine
        self.registry = CollectorRegistry()
        self.metrics = RequestMetrics(self.registry)
        self.vllm_metrics = VllmMetrics(self.registry, options.served_name)
        self.lifecycle = Lifecycle(self.metrics)
        self.flights = Flights()
        self.version = version("shift-runtime")
        self.last_state: EngineState | None = None
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """Raises Refusal (UNAVAILABLE) while the pod starts."""
        if self._model is None:
            raise self.lifecycle.refusal()
        return self._model

    def serving(self) -> Model:
        """The model, for a new request; raises Refusal unless the pod is ready."""
        if not self.lifecycle.ready:
            raise self.lifecycle.refusal()
        return self.model

    def started(self, ready: Ready, text: Text) -> None:
        limits = Limits(
            served_name=self.options.served_name,
            vocab_size=ready.vocab_size,
            max_prompt_tokens=ready.max_prompt_tokens,
            max_model_len=ready.max_model_len,
            eos_ids=text.eos_ids,
            defaults=text.defaults if self.options.model_defaults else NO_DEFAULTS,
            request_seconds=self.options.limits.request_seconds,
        )
        self._model = Model(ready, text, limits)

    async def state(self) -> EngineState:
        """The engine's state now; raises Refusal (UNAVAILABLE) when the engine failed or does not answer."""
        if self.lifecycle.failure is not None:
            raise self.lifecycle.refusal()
        try:
            self.last_state = await asyncio.wait_for(self.engine.state(), STATE_SECONDS)
        except EngineFailed as failure:
            raise Refusal.of(failure) from failure
        except TimeoutError as error:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE, ENGINE_SILENT, f"the engine did not answer within {STATE_SECONDS:g} s"
            ) from error
        return self.last_state
