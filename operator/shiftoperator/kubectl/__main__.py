"""`kubectl-shift`, which kubectl runs for `kubectl shift`."""

from __future__ import annotations

import importlib.util
import io
import os
import sys


def main() -> None:
    if importlib.util.find_spec("rich") is None:
        sys.exit("kubectl shift: the package rich is missing; install shift-operator[kubectl]")
    # Only here: without rich the sentence above is all that can be said.
    from shiftoperator.kubectl.cli import main as run

    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows fewer characters shows what it can.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has enough, as `head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    main()
