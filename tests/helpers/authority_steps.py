"""The steps from one authority of a control channel to the next on a real cluster, without their hours.

Only dates are moved: what is stored looks older than it is, and the operator does what is due.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from shiftoperator.certificates import TRUST_BEFORE_USE, Certificates, renewed, stored
from shiftprotos import contract

from examples.demo.pods import secret
from examples.demo.settings import NAME, NAMESPACE
from localcluster.settings import Settings
from localcluster.tools import kubectl

SECRET = f"{NAME}-control-ca"
_CONNECT_SECONDS = 10.0


def held(cluster: Settings) -> Certificates:
    found = stored(secret(SECRET, cluster), datetime.now(UTC))
    assert found is not None, f"Secret {SECRET} has no authority"
    return found


def announce_next(cluster: Settings, found: Certificates, used_in: timedelta) -> str:
    """The next authority, trusted from now on and to be used so soon; returns its name."""
    made = renewed(None, f"{NAMESPACE}/{NAME}", datetime.now(UTC) - TRUST_BEFORE_USE + used_in)
    _store(cluster, replace(found, following=made.authority))
    return made.authority.parsed.subject.rfc4514_string()


def forget_before(cluster: Settings, found: Certificates) -> None:
    """As an hour after the next one came into use."""
    assert found.before is not None, "no authority was replaced"
    _store(cluster, replace(found, before=None))


def shown_on(port: int) -> str:
    """Who signed the certificate that a control port on loopback shows to anybody."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), _CONNECT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=contract.CONTROL_TLS_NAME) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None, "a server shows a certificate"
    return x509.load_der_x509_certificate(shown).issuer.rfc4514_string()


def _store(cluster: Settings, certificates: Certificates) -> None:
    data = {name: base64.b64encode(value).decode() for name, value in certificates.as_data().items()}
    kubectl(
        "patch",
        "secret",
        SECRET,
        "-n",
        NAMESPACE,
        "--type",
        "merge",
        "-p",
        json.dumps({"data": data}),
        settings=cluster,
    )
