"""`spec.cache`: where fetched models and measured costs of the gears are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shiftoperator.errors import InvalidSpecError

_SIZE = re.compile(r"([1-9][0-9]{0,5})(Mi|Gi|Ti)")
_UNITS = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Cache:
    """On a claim, or on the node's disk for as long as the pod lives."""

    claim: str | None = None
    size_limit: str | None = None

    @property
    def limit_bytes(self) -> int | None:
        """What a pod may keep there; None where only the volume says."""
        match = _SIZE.fullmatch(self.size_limit or "")
        return int(match[1]) * _UNITS[match[2]] if match else None


def cache(asked: dict[str, Any] | None) -> Cache | None:
    if not asked:
        return None
    found = Cache(asked.get("claimName"), asked.get("sizeLimit"))
    if found.claim is not None and found.size_limit is not None:
        raise InvalidSpecError(
            f"cache.sizeLimit {found.size_limit!r} bounds the node's disk, and cache.claimName {found.claim!r} has a "
            "size of its own; remove one of them"
        )
    if found.size_limit is not None and found.limit_bytes is None:
        raise InvalidSpecError(f"cache.sizeLimit {found.size_limit!r} is no size; write a number with Mi, Gi or Ti")
    return found
