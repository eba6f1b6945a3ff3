"""The last words of a process: {"reason", "message"} where Kubernetes picks them up."""

from __future__ import annotations

import json
import logging
from pathlib import Path

log = logging.getLogger(__name__)

# The kubelet reads no more of a container's termination message.
MAX_BYTES = 4096
_CUT = "…"


def encode(reason: str, message: str) -> bytes:
    """JSON of at most MAX_BYTES; a longer message is cut, never the JSON."""
    line = _json(reason, message)
    while len(line) > MAX_BYTES:
        excess = len(line) - MAX_BYTES
        # A character takes up to 4 bytes (6 escaped), so cutting a sixth of the excess never cuts far too much.
        message = message.removesuffix(_CUT)[: -max(1, excess // 6 + 1)] + _CUT
        line = _json(reason, message)
    return line


def write(path: Path | None, reason: str, message: str) -> None:
    """Leave the words at ``path``. A path that cannot be written is logged: the words are on stderr as well."""
    if path is None:
        return
    try:
        path.write_bytes(encode(reason, message))
    except OSError as error:
        log.warning("cannot write the termination log %s: %s", path, error)


def _json(reason: str, message: str) -> bytes:
    return json.dumps({"reason": reason, "message": message}, ensure_ascii=False).encode(errors="replace")
