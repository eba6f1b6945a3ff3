"""One generation from arrival to its single end, for every transport alike.

    async with aclosing(generate(frontend, generation, accepted)) as deltas:
        async for delta in deltas: …

``accepted`` is awaited once, when the engine has admitted every choice: from then on each choice ends with a delta that
has ``finish``, or the generator raises Refusal. Closing the generator, or cancelling its reader, aborts the request.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from time import monotonic
from uuid import uuid4

import grpc
from shiftprotos import contract

from shiftruntime.engine.client import EngineFailed, RequestRefused
from shiftruntime.engine.messages import Finish, Output, Submit
from shiftruntime.server.choices import Choice, choice_ids, close, merge
from shiftruntime.server.deadlines import Deadlines
from shiftruntime.server.flights import Flight
from shiftruntime.server.frontend import FrontEnd, Model
from shiftruntime.server.measure import left, measure
from shiftruntime.server.refusal import ENGINE_SILENT, Refusal
from shiftruntime.server.request import Delta, Generation, Journey, Options, Usage
from shiftruntime.server.request_log import Accepted, Record
from shiftruntime.server.text import Completion
from shiftruntime.server.tokens import text_of, tokenise_prompt
from shiftruntime.server.validation import check_generation, check_prompt, resolve_sampling

__all__ = ["Delta", "Generation", "Journey", "Options", "Usage", "abort", "generate"]

# The engine admits or refuses between two steps.
ADMISSION_SECONDS = 30.0


async def _unheard() -> None:
    pass


async def generate(
    frontend: FrontEnd, generation: Generation, accepted: Accepted = _unheard
) -> AsyncGenerator[Delta, None]:
    """Deltas of all choices, interleaved as they come; raises Refusal, before or after ``accepted``."""
    record = Record(generation.request_id or uuid4().hex, generation.tenant, generation.trace)
    try:
        model = frontend.serving()
        check_generation(generation, model.limits)
        ids = choice_ids(record.request_id, generation.options.n)
        with frontend.flights.enter(ids, record.arrived) as flight:
            async with aclosing(_run(frontend, model, generation, flight, record.accepting(accepted))) as deltas:
                async for delta in deltas:
                    record.add(delta)
                    yield delta
    except Refusal as refusal:
        record.refuse(refusal)
        raise
    except (asyncio.CancelledError, GeneratorExit):  # the client left, or its deadline passed
        record.cancel()
        raise
    finally:
        record.close(frontend.metrics, frontend.options.log_requests)


def abort(frontend: FrontEnd, request_id: str) -> None:
    """End a request, or one choice by its own id. Idempotent; an unknown id is nothing."""
    flight = frontend.flights.get(request_id)
    if flight is None:
        return
    if not flight.admitted and request_id == flight.request_id:
        flight.interruption = Refusal(grpc.StatusCode.CANCELLED, contract.REFUSED_ABORTED, "the request was aborted")
    elif not flight.admitted:
        flight.aborted.add(request_id)
    for choice_id in flight.ids if request_id == flight.request_id else (request_id,):
        if choice_id in flight.open_ids:
            frontend.engine.abort(choice_id)


async def _run(
    frontend: FrontEnd, model: Model, generation: Generation, flight: Flight, accepted: Accepted
) -> AsyncGenerator[Delta, None]:
    """The request while its ids are held; however it ends, the engine forgets it."""
    deadlines = Deadlines.of(generation, frontend.options.limits, flight.arrived)
    streams: list[AsyncIterator[Output]] = []
    choices: tuple[Choice, ...] = ()
    try:
        async with deadlines.whole():
            choices = await _choices(model, generation, flight, deadlines.end)
            await _admit(frontend, [choice.submit for choice in choices], flight, streams)
        await accepted()
        for index in range(len(choices)):
            head = await _head(model, generation, flight.request_id, index, choices[index].submit.prompt)
            if head is not None:
                yield head
        async with aclosing(merge(streams)) as outputs:
            async for delta in _deltas(frontend, flight, choices, outputs, deadlines):
                yield delta
    except EngineFailed as failure:  # a late answer ends in it as well, so what was admitted is aborted below
        raise Refusal.of(failure) from failure
    finally:
        if flight.admitted:
            left(frontend.vllm_metrics, choices, flight.arrived)
        await close(streams)
        for choice_id in sorted(flight.open_ids):
            frontend.engine.abort(choice_id)


async def _choices(model: Model, generation: Generation, flight: Flight, deadline: float) -> tuple[Choice, ...]:
    """The complete requests, one per choice; raises Refusal (INVALID_ARGUMENT)."""
    assert generation.prompt is not None, "check_generation comes first"
    options, limits = generation.options, model.limits
    if isinstance(generation.prompt, str):
        prompt = tuple(await tokenise_prompt(model, generation.prompt, generation.add_special_tokens))
    else:
        prompt = generation.prompt
    check_prompt(prompt, limits)
    drawn_seed = secrets.randbits(63)
    choices = []
    for index, choice_id in enumerate(flight.ids):
        sampling = resolve_sampling(options, len(prompt), limits, drawn_seed, index)
        submit = Submit(
            choice_id,
            prompt,
            sampling,
            tenant=generation.tenant,
            cache_salt=generation.cache_salt,
            priority=generation.priority,
            timeout_seconds=max(0.0, deadline - monotonic()),
            shares_prompt_with=flight.request_id if index else "",
        )
        completion = Completion(
            model.text.decoder(generation.visible_special_ids),
            options.stop or limits.defaults.stop_strings,
            sampling.stop_token_ids,
            sampling.min_tokens,
            options.include_stop,
        )
        choices.append(Choice(index, submit, completion, flight.arrived, scores_only=options.max_tokens == 0))
    return tuple(choices)


async def _admit(
    frontend: FrontEnd, submits: list[Submit], flight: Flight, streams: list[AsyncIterator[Output]]
) -> None:
    """Hand all choices to the engine and add their outputs to ``streams``; raises Refusal when one is not accepted."""
    try:
        async with asyncio.timeout(ADMISSION_SECONDS):
            for submit in submits:  # in order: siblings name the first, which must be known by then
                if flight.interruption is not None:  # aborted, or the drain ended, while the prompt was tokenised
                    raise flight.interruption
                if submit.request_id in flight.aborted:
                    streams.append(_aborted(submit))
                    continue
                flight.open_ids.add(submit.request_id)
                try:
                    streams.append(await frontend.engine.submit(submit))
                except RequestRefused:
                    flight.open_ids.discard(submit.request_id)  # nothing to abort: it may be another request's id
                    if submit.request_id not in flight.aborted:
                        raise
                    streams.append(_aborted(submit))
        flight.admitted = True
    except RequestRefused as refused:  # perhaps because we ended it: then for our reason
        raise flight.interruption or Refusal.of(refused) from refused
    except TimeoutError as error:
        raise Refusal(
            grpc.StatusCode.UNAVAILABLE, ENGINE_SILENT, f"not admitted within {ADMISSION_SECONDS:g} s"
        ) from error


async def _aborted(submit: Submit) -> AsyncGenerator[Output, None]:
    """What the engine would say of a choice that was aborted before it got there."""
    yield Output(submit.request_id, (), finish=Finish.ABORT)


async def _head(
    model: Model, generation: Generation, request_id: str, index: int, prompt: tuple[int, ...]
) -> Delta | None:
    """What precedes the first token: the prompt, when asked for."""
    if not generation.echo and not (generation.options.prompt_logprobs and index == 0):
        return None
    text = ""
    if generation.echo:
        text = generation.prompt if isinstance(generation.prompt, str) else await text_of(model, prompt)
    return Delta(request_id, index, text, prompt_tokens=len(prompt), prompt_token_ids=prompt)


async def _deltas(
    frontend: FrontEnd,
    flight: Flight,
    choices: tuple[Choice, ...],
    outputs: AsyncGenerator[tuple[int, Output], None],
    deadlines: Deadlines,
) -> AsyncGenerator[Delta, None]:
    """Up to the last delta of the last choice; raises Refusal when the pod or the deadline ends the request."""
    begun = False
    while any(choice.finish is None for choice in choices):
        try:
            async with deadlines.whole() if begun else deadlines.first_token():
                index, output = await anext(outputs)
        except StopAsyncIteration:
            text = "the engine ended the request without a reason"
            raise Refusal(grpc.StatusCode.INTERNAL, contract.REASON_INTERNAL, text) from None
        choice = choices[index]
        if output.finish is not None:
            flight.open_ids.discard(choice.submit.request_id)
        if flight.interruption is not None:
            raise flight.interruption
        if output.finish is Finish.DEADLINE:
            raise deadlines.late()
        begun = begun or bool(output.token_ids)
        delta = _push(frontend, flight, choice, output)
        if delta.finish or delta.token_ids or delta.text or delta.prompt_logprobs:
            yield delta


def _push(frontend: FrontEnd, flight: Flight, choice: Choice, output: Output) -> Delta:
    """The delta of one output, counted; a choice that met a stop string is ended in the engine."""
    had_stopped = choice.stopped
    delta = choice.push(flight.request_id, output)
    measure(frontend.metrics, frontend.vllm_metrics, choice, delta, flight.arrived)
    if choice.stopped and not had_stopped and output.finish is None:
        frontend.engine.abort(choice.submit.request_id)  # its last output brings usage and journey
    return delta
