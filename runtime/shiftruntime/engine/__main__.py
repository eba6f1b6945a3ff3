"""Entry of the engine process; started by the front end, never by a person."""

from __future__ import annotations

import argparse
import logging
import selectors
import signal
import socket
import sys

from shiftprotos import contract

from shiftruntime.engine.engine import Engine
from shiftruntime.engine.messages import Fatal, Ready, Shutdown, ToEngine
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.ranks import RankGroup
from shiftruntime.engine.start_message import Start
from shiftruntime.engine.startup import Started, Startup
from shiftruntime.errors import ShiftError
from shiftruntime.worker.frames import FrameError, FrameSocket

_IDLE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class FrontEndGone(Exception):
    """The front end closed the channel: end quietly, it is the one that reports."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="shiftruntime.engine", description=__doc__)
    parser.add_argument("--socket-fd", type=int, required=True)
    fd = parser.parse_args().socket_fd
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the front end drains and then says Shutdown
    frames: FrameSocket[ToEngine | Start] = FrameSocket(socket.socket(fileno=fd), ToEngine | Start)
    first = frames.receive()
    if not isinstance(first, Start):
        return 0  # the front end died at birth
    try:
        _run(first.options, frames)
    except ShiftError:
        return 1  # reported
    except (FrontEndGone, BrokenPipeError, ConnectionResetError):
        return 0
    return 0


def _run(options: EngineOptions, frames: FrameSocket[ToEngine | Start]) -> None:
    selector = selectors.DefaultSelector()
    inbox: list[ToEngine] = []  # what arrives before the engine is there
    engine: Engine | None = None

    def receive() -> None:
        try:
            messages = frames.receive_available()
        except FrameError as error:
            raise ShiftError(contract.REASON_INTERNAL, f"the front end sent a broken frame: {error}") from error
        if messages is None:
            raise FrontEndGone
        for message in messages:
            assert not isinstance(message, Start), "Start comes once"
            if isinstance(message, Shutdown) and engine is None:
                raise FrontEndGone
            if engine is None:
                inbox.append(message)
            else:
                engine.handle(message)

    selector.register(frames.socket, selectors.EVENT_READ, receive)
    failed = False
    try:
        ranks = RankGroup(options.ranks, selector, options.step_timeout_seconds)
    except ShiftError as error:
        _report(frames, Fatal(error.reason, error.message))
        raise
    try:
        startup = Startup(options, ranks, frames.send)
        started = startup.run()
        engine = Engine(options, startup, started, ranks, frames.send)
        selector.register(engine.grammars.wake, selectors.EVENT_READ, engine.take_grammars)
        frames.send(_ready(started))
        for message in inbox:
            engine.handle(message)
        while not engine.stopping:
            busy = engine.step()
            for key, _ in selector.select(0.0 if busy else _IDLE_SECONDS):
                key.data()
    except ShiftError as error:
        # Before the ranks are ended: no stream must wait for that.
        failed = True
        _report(frames, Fatal(error.reason, error.message))
        raise
    except (FrontEndGone, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # the edge of this process: whoever waits must learn more than that it ended
        failed = True
        _log.exception("the engine broke an expectation of its own")
        text = f"the engine broke an expectation of its own, which is a bug: {type(error).__name__}: {error}"
        _report(frames, Fatal(contract.REASON_INTERNAL, text))
        raise ShiftError(contract.REASON_INTERNAL, text) from error
    finally:
        ranks.close(failed)


def _ready(started: Started) -> Ready:
    config = started.config
    return Ready(
        architecture=config.architecture,
        dtype=started.dtype,
        max_model_len=started.max_model_len,
        vocab_size=config.vocab_size,
        max_prompt_tokens=started.max_model_len - 1,
        gears=tuple(gear.name for gear in started.table.gears),
    )


def _report(frames: FrameSocket[ToEngine | Start], fatal: Fatal) -> None:
    try:
        frames.send(fatal)
    except OSError:  # the front end is gone: say it where a person may look
        print(f"{fatal.reason}: {fatal.message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
