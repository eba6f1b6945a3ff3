"""`shift-runtime`, also `python -m shiftruntime`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial

from shiftprotos import contract

from shiftruntime import log
from shiftruntime.engine.client import EngineClient
from shiftruntime.log import LogFormat
from shiftruntime.server import fetch_step, fetching, manifest_command, termination, text_source
from shiftruntime.server.app import serve
from shiftruntime.server.environment import Environment
from shiftruntime.server.options import parse, parse_fetch, parse_manifest, parse_terminal
from shiftruntime.server.terminal.cli import VERBS as TERMINAL_VERBS
from shiftruntime.server.terminal.run import run
from shiftruntime.server.usage import UsageError

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 after a drain, 1 for a failure, 2 for a wrong command line."""
    code = _run(arguments)
    if fetching.abandoned():  # it stands in native code, which must not come back to an interpreter that is ending
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(arguments: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["manifest"]:
            return manifest_command.write(parse_manifest(arguments))
        if arguments[:1] == ["fetch"]:
            return fetch_step.command(parse_fetch(arguments))
        if arguments[:1] and arguments[0] in TERMINAL_VERBS:
            log.setup(LogFormat.TEXT, level=logging.WARNING)
            return run(parse_terminal(arguments), EngineClient)
        options = parse(arguments)
    except UsageError as error:
        print(f"shift-runtime: error: {error}\nTry 'shift-runtime --help'.", file=sys.stderr)
        path = Environment.of(os.environ).termination_log
        termination.write(path, contract.REASON_INVALID_ARGUMENT, str(error))
        return EXIT_USAGE
    log.setup(options.log_format, options.environment.pod_name, level=options.log_level.number)
    load_text = partial(text_source.load, chat_template=options.chat_template)
    return asyncio.run(serve(options, EngineClient, load_text))


if __name__ == "__main__":
    sys.exit(main())
