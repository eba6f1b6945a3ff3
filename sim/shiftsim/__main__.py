"""`shift-sim`, also `python -m shiftsim`."""

from __future__ import annotations

import io
import os
import sys

from shiftsim.cli import run
from shiftsim.errors import UserError

EXIT_USAGE = 2


def main() -> None:
    """Exit code: 0, or 2 for a command line or a file that cannot be used."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows fewer characters shows what it can.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        run(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        sys.exit(_refuse(error))
    except BrokenPipeError:
        # The reader has enough, as `head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(error: UserError) -> int:
    print(f"shift-sim: {error}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    main()
