"""What opens the control ports of the pods, as it is stored."""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from datetime import datetime

from shiftprotos import contract

from shiftoperator import certificates, names
from shiftoperator.snapshot import Access, ClientTls, Object, Snapshot

# Of what somebody wrote: an annotation may have a quarter of a megabyte.
_SHOWN = 64


def control_token(snapshot: Snapshot) -> str | None:
    """The token in the control Secret; None when there is none that can be used."""
    found = _secret(snapshot, names.control_secret(snapshot.key.name)).get(contract.CONTROL_TOKEN_KEY, b"")
    try:
        token = found.decode("ascii")
    except UnicodeDecodeError:
        return None
    return token if len(token) >= 32 and token.isprintable() else None


def stored_certificates(snapshot: Snapshot, now: datetime) -> certificates.Certificates | None:
    """None when there are none that can be used."""
    return certificates.stored(_secret(snapshot, names.authority_secret(snapshot.key.name)), now)


def rotation_asked(snapshot: Snapshot) -> datetime | None:
    """The time before which an authority is too old, as somebody asked; None where nobody did, and for what is no time:
    an annotation is free text, and must not stop what the spec asks for."""
    try:
        asked = datetime.fromisoformat(_rotation_text(snapshot) or "")
    except (TypeError, ValueError):
        return None
    return asked if asked.tzinfo is not None else None


def rotation_ignored(snapshot: Snapshot) -> str:
    """A sentence about what was asked for and is no time, else nothing."""
    text = _rotation_text(snapshot)
    if text is None or rotation_asked(snapshot) is not None:
        return ""
    shown = text if len(str(text)) <= _SHOWN else f"{str(text)[:_SHOWN]}…"
    return f"annotation {contract.ANNOTATION_ROTATE} {shown!r} is no time; write 2026-01-31T12:00:00Z or remove it"


def _rotation_text(snapshot: Snapshot) -> str | None:
    annotations: Object = snapshot.resource["metadata"].get("annotations") or {}
    return annotations.get(contract.ANNOTATION_ROTATE)


def access(snapshot: Snapshot) -> Access | None:
    """To the pods' control ports; None without a token. What is wrong with a certificate, a pod says."""
    token = control_token(snapshot)
    if token is None:
        return None
    data = _secret(snapshot, names.authority_secret(snapshot.key.name))
    parts = [
        data.get(key, b"") for key in (contract.CONTROL_TLS_AUTHORITIES, certificates.CLIENT, certificates.CLIENT_KEY)
    ]
    return Access(token, ClientTls(*parts) if all(parts) else None)


def _secret(snapshot: Snapshot, name: str) -> dict[str, bytes]:
    """Its data; without what is damaged."""
    data = {}
    for key, encoded in snapshot.children.get(("Secret", name), {}).get("data", {}).items():
        with suppress(binascii.Error, TypeError):
            data[key] = base64.b64decode(encoded, validate=True)
    return data
