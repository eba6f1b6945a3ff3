"""`spec.service`: how clients reach the pods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shiftoperator.errors import InvalidSpecError

SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer")
CLIENT_AUTH = ("None", "Required")
# Keys of a Secret of type kubernetes.io/tls, and what cert-manager adds.
TLS_CERTIFICATE, TLS_KEY, TLS_AUTHORITY = "tls.crt", "tls.key", "ca.crt"


@dataclass(frozen=True)
class ServingTls:
    """`secret` holds tls.crt and tls.key, and ca.crt when clients must show a certificate of it."""

    secret: str
    asks_clients: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the Secret, that pods read."""
        return (TLS_CERTIFICATE, TLS_KEY, TLS_AUTHORITY) if self.asks_clients else (TLS_CERTIFICATE, TLS_KEY)


@dataclass(frozen=True)
class Service:
    type: str = "ClusterIP"
    annotations: dict[str, str] = field(default_factory=dict)
    tls: ServingTls | None = None


def service(asked: dict[str, Any]) -> Service:
    type_ = asked.get("type", Service.type)
    if type_ not in SERVICE_TYPES:
        raise InvalidSpecError(f"service.type {type_!r} is unknown; use {', '.join(SERVICE_TYPES)}")
    return Service(type_, dict(asked.get("annotations", {})), _tls(asked["tls"]) if "tls" in asked else None)


def _tls(asked: dict[str, Any]) -> ServingTls:
    name, auth = asked.get("secretName", ""), asked.get("clientAuth", "None")
    if not name:
        raise InvalidSpecError("service.tls.secretName is empty; name a Secret with tls.crt and tls.key")
    if auth not in CLIENT_AUTH:
        raise InvalidSpecError(f"service.tls.clientAuth {auth!r} is unknown; use {', '.join(CLIENT_AUTH)}")
    return ServingTls(name, auth == "Required")
