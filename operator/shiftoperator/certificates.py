"""Certificates of the control channel: one authority per ShiftDeployment, a certificate for its pods and one for us.

Everything lives in one Secret, so that it changes as a whole. `renewed` is told what is stored and the time, and
returns what should be; what is still good comes back byte for byte. An authority is replaced in three steps, apart
enough for every mounted Secret to follow: the next one is trusted, then signs, then the one before is trusted no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from shiftprotos import contract

AUTHORITY_LIFE = timedelta(days=365)
LEAF_LIFE = timedelta(days=90)
# Of a life; after that the next one is made.
RENEW_AFTER = 2 / 3
# The kubelet brings a changed Secret into a pod within about two minutes.
TRUST_BEFORE_USE = timedelta(minutes=10)
KEEP_AFTER_USE = timedelta(hours=1)
# Clocks of nodes differ.
BACKDATED = timedelta(minutes=5)

# Keys inside the Secret of the authority; the leaf of the pods and `ca.crt` go into the control Secret too.
AUTHORITY, AUTHORITY_KEY = "authority.crt", "authority.key"
NEXT, NEXT_KEY = "next.crt", "next.key"
BEFORE = "before.crt"
CLIENT, CLIENT_KEY = "client.crt", "client.key"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    @property
    def parsed(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate)

    @property
    def issued_at(self) -> datetime:
        return self.parsed.not_valid_before_utc + BACKDATED

    def due(self, now: datetime) -> bool:
        """Whether the next one should be made."""
        return now >= self.issued_at + (self.parsed.not_valid_after_utc - self.issued_at) * RENEW_AFTER


@dataclass(frozen=True)
class Certificates:
    """`following` is trusted and does not sign yet; `before` (PEM) does not sign any more and is still trusted."""

    authority: Pair
    server: Pair
    client: Pair
    following: Pair | None = None
    before: bytes | None = None

    @property
    def trusted(self) -> bytes:
        """PEM bundle."""
        following = self.following.certificate if self.following is not None else None
        return b"".join(c for c in (self.authority.certificate, following, self.before) if c)

    def as_data(self) -> dict[str, bytes]:
        """Of the Secret."""
        following, before = self.following or Pair(b"", b""), self.before or b""
        return {
            AUTHORITY: self.authority.certificate, AUTHORITY_KEY: self.authority.key,
            contract.CONTROL_TLS_CERTIFICATE: self.server.certificate, contract.CONTROL_TLS_KEY: self.server.key,
            CLIENT: self.client.certificate, CLIENT_KEY: self.client.key,
            contract.CONTROL_TLS_AUTHORITIES: self.trusted,
            # Empty instead of missing: the keys of the Secret are always the same.
            NEXT: following.certificate, NEXT_KEY: following.key, BEFORE: before,
        }  # fmt: skip

    def for_pods(self) -> dict[str, bytes]:
        """What the control Secret, which pods mount, has beside the token."""
        names = (contract.CONTROL_TLS_CERTIFICATE, contract.CONTROL_TLS_KEY, contract.CONTROL_TLS_AUTHORITIES)
        data = self.as_data()
        return {name: data[name] for name in names}


def stored(data: Mapping[str, bytes], now: datetime) -> Certificates | None:
    """What a Secret holds; None without an authority that is good now.

    An authority that pods trust outlives all else in the Secret: a leaf that is missing, damaged, out of its time or of
    another authority is made anew, and what else is damaged is dropped.
    """
    authority = _read(data, AUTHORITY, AUTHORITY_KEY, now)
    if authority is None:
        return None
    server = _read(data, contract.CONTROL_TLS_CERTIFICATE, contract.CONTROL_TLS_KEY, now, authority)
    client = _read(data, CLIENT, CLIENT_KEY, now, authority)
    return Certificates(
        authority,
        server or _leaf(_SERVER, authority, now),
        client or _leaf(_CLIENT, authority, now),
        _read(data, NEXT, NEXT_KEY, now),
        _certificate(data.get(BEFORE, b"")),
    )


def renewed(found: Certificates | None, name: str, now: datetime, asked: datetime | None = None) -> Certificates:
    """What should be stored now; `found` itself when nothing is due. `name` appears in the certificates, for people;
    an authority made before `asked` is replaced from that time on."""
    if found is None:
        authority = _authority(name, now)
        return Certificates(authority, _leaf(_SERVER, authority, now), _leaf(_CLIENT, authority, now))
    # Asked again by every pass: the authority that came of it is younger, and one that is on its way ends first.
    due = found.authority.due(now) or (asked is not None and found.authority.issued_at < asked <= now)
    if found.following is None and found.before is None and due:
        found = replace(found, following=_authority(name, now))
    elif found.following is not None and now >= found.following.issued_at + TRUST_BEFORE_USE:
        authority, before = found.following, found.authority.certificate
        server, client = _leaf(_SERVER, authority, now), _leaf(_CLIENT, authority, now)
        found = Certificates(authority, server, client, before=before)
    elif found.before is not None and now >= found.server.issued_at + KEEP_AFTER_USE:
        found = replace(found, before=None)
    if found.server.due(now):
        found = replace(found, server=_leaf(_SERVER, found.authority, now))
    if found.client.due(now):
        found = replace(found, client=_leaf(_CLIENT, found.authority, now))
    return found


# --- making ---


@dataclass(frozen=True)
class _Role:
    name: str
    usage: x509.ObjectIdentifier


# The same name for every pod: pods come and go with their addresses, and the authority serves one resource only.
_SERVER = _Role(contract.CONTROL_TLS_NAME, ExtendedKeyUsageOID.SERVER_AUTH)
_CLIENT = _Role(contract.MANAGED_BY, ExtendedKeyUsageOID.CLIENT_AUTH)


def _authority(name: str, now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    # The time tells two authorities of one resource apart.
    subject = _subject(f"shift control of {name}"[:48] + f" {now:%Y%m%d%H%M%S}")
    usage = x509.KeyUsage(
        digital_signature=False, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate, key)


def _leaf(role: _Role, authority: Pair, now: datetime) -> Pair:
    key, signer = ec.generate_private_key(ec.SECP256R1()), _key(authority)
    parent = authority.parsed
    life = min(LEAF_LIFE, parent.not_valid_after_utc - now)
    certificate = (
        _builder(_subject(role.name), parent.subject, key.public_key(), now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(role.name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([role.usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pem(certificate, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), encoded)


# --- checking ---

# What damaged or foreign PEM raises.
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)


def _read(
    data: Mapping[str, bytes], certificate: str, key: str, now: datetime, authority: Pair | None = None
) -> Pair | None:
    """None unless both belong together, are in their time and, of a leaf, were signed by this authority."""
    pair = Pair(data.get(certificate, b""), data.get(key, b""))
    try:
        parsed = pair.parsed
        in_time = parsed.not_valid_before_utc <= now < parsed.not_valid_after_utc
        matches = _key(pair).public_key() == parsed.public_key()
        if authority is not None:
            parsed.verify_directly_issued_by(authority.parsed)
    except (*_UNREADABLE, InvalidSignature):
        return None
    return pair if in_time and matches else None


def _certificate(pem: bytes) -> bytes | None:
    try:
        x509.load_pem_x509_certificate(pem)
    except _UNREADABLE:
        return None
    return pem


def _key(pair: Pair) -> ec.EllipticCurvePrivateKey:
    """Raises one of ``_UNREADABLE``."""
    key = serialization.load_pem_private_key(pair.key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not a key of an elliptic curve")
    return key
