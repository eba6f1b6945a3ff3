"""The control channel's certificates: made once, renewed in time, replaced without a moment of distrust."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from shiftoperator import certificates
from shiftoperator.certificates import (
    AUTHORITY,
    AUTHORITY_KEY,
    AUTHORITY_LIFE,
    BEFORE,
    CLIENT,
    CLIENT_KEY,
    KEEP_AFTER_USE,
    LEAF_LIFE,
    NEXT,
    TRUST_BEFORE_USE,
    Certificates,
    Pair,
    renewed,
)
from shiftprotos import contract

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def first() -> Certificates:
    return renewed(None, "team/gemma", START)


def verified(leaf: Pair, bundle: bytes, at: datetime, *, server: bool) -> bool:
    """By an implementation of X.509 path validation that is not ours."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    builder = PolicyBuilder().store(store).time(at)
    try:
        if server:
            builder.build_server_verifier(x509.DNSName(contract.CONTROL_TLS_NAME)).verify(leaf.parsed, [])
        else:
            builder.build_client_verifier().verify(leaf.parsed, [])
    except VerificationError:
        return False
    return True


def test_both_leaves_are_good_for_their_own_end_only(first: Certificates) -> None:
    assert verified(first.server, first.trusted, START, server=True)
    assert verified(first.client, first.trusted, START, server=False)
    assert not verified(first.client, first.trusted, START, server=True)
    assert not verified(first.server, first.trusted, START, server=False)


def test_another_resources_authority_is_not_trusted(first: Certificates) -> None:
    other = renewed(None, "team/gemma", START)
    assert not verified(other.client, first.trusted, START, server=False)
    assert not verified(other.server, first.trusted, START, server=True)


def test_what_is_good_comes_back_byte_for_byte(first: Certificates) -> None:
    stored = certificates.stored(first.as_data(), START + HOUR)
    assert stored == first
    assert renewed(stored, "team/gemma", START + HOUR).as_data() == first.as_data()


def damaged(first: Certificates, key: str, damage: str) -> dict[str, bytes]:
    data = first.as_data()
    other = renewed(None, "team/gemma", START).as_data()
    data[key] = {"missing": b"", "empty": b"", "cut": data[key][:60], "of another": other[key]}[damage]
    if damage == "missing":
        del data[key]
    return data


@pytest.mark.parametrize("key", [AUTHORITY, AUTHORITY_KEY])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "of another"])
def test_an_authority_that_is_not_whole_is_not_used(first: Certificates, key: str, damage: str) -> None:
    assert certificates.stored(damaged(first, key, damage), START) is None


@pytest.mark.parametrize("key", [CLIENT, CLIENT_KEY, "tls.crt", "tls.key"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "of another"])
def test_a_bad_leaf_is_made_anew_by_the_authority_that_pods_trust(first: Certificates, key: str, damage: str) -> None:
    found = certificates.stored(damaged(first, key, damage), START)
    assert found is not None
    assert found.authority == first.authority
    assert verified(found.server, first.trusted, START, server=True)
    assert verified(found.client, first.trusted, START, server=False)


def test_expired_leaves_leave_the_authority_in_force(first: Certificates) -> None:
    """Found in review: an operator that was away for long threw away an authority that all pods trusted."""
    now = START + LEAF_LIFE
    found = certificates.stored(first.as_data(), now)
    assert found is not None
    assert found.authority == first.authority
    assert verified(found.client, first.trusted, now, server=False)
    assert certificates.stored(first.as_data(), START + AUTHORITY_LIFE) is None


def test_what_a_wrong_clock_made_in_the_future_is_not_kept() -> None:
    """Found in review: nobody trusts it until then, and it counted as good."""
    future = renewed(None, "team/gemma", START + timedelta(days=30))
    assert certificates.stored(future.as_data(), START) is None
    mixed = renewed(None, "team/gemma", START)
    later = renewed(mixed, "team/gemma", START + LEAF_LIFE * 0.9)
    found = certificates.stored(later.as_data(), START + HOUR)
    assert found is not None
    assert verified(found.server, mixed.trusted, START + HOUR, server=True)


def test_a_key_of_a_foreign_kind_is_not_used(first: Certificates) -> None:
    data = first.as_data()
    data[AUTHORITY_KEY] = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ==\n-----END PRIVATE KEY-----\n"
    assert certificates.stored(data, START) is None


def test_no_key_is_printed(first: Certificates) -> None:
    assert "PRIVATE" not in repr(first)


def test_pods_never_get_the_key_that_signs(first: Certificates) -> None:
    mounted = first.for_pods()
    assert set(mounted) == {"tls.crt", "tls.key", "ca.crt"}
    for secret in (first.authority.key, first.client.key):
        assert not any(secret in value for value in mounted.values())


def test_a_leaf_is_renewed_alone(first: Certificates) -> None:
    later = renewed(first, "team/gemma", START + LEAF_LIFE * 0.7)
    assert later.authority == first.authority
    assert later.server != first.server
    assert later.client != first.client
    assert later.trusted == first.trusted


def test_an_authority_is_replaced_in_steps(first: Certificates) -> None:
    now = START + AUTHORITY_LIFE * 0.7
    trusting = renewed(first, "team/gemma", now)
    assert (trusting.authority, trusting.before) == (first.authority, None)
    assert trusting.following is not None
    assert renewed(trusting, "team/gemma", now + TRUST_BEFORE_USE - HOUR / 60) == trusting
    using = renewed(trusting, "team/gemma", now + TRUST_BEFORE_USE)
    assert (using.authority, using.before) == (trusting.following, first.authority.certificate)
    now += TRUST_BEFORE_USE
    assert renewed(using, "team/gemma", now + KEEP_AFTER_USE - HOUR / 60) == using
    done = renewed(using, "team/gemma", now + KEEP_AFTER_USE)
    assert (done.following, done.before, done.trusted) == (None, None, done.authority.certificate)


def test_over_three_years_no_end_ever_shows_what_the_other_does_not_trust(first: Certificates) -> None:
    """Pods may hold what was stored up to two passes ago, and so may we."""
    now, held = START, [first]
    while now < START + 3 * AUTHORITY_LIFE:
        now += timedelta(minutes=7) if held[-1].following or held[-1].before else timedelta(days=1)
        stored = certificates.stored(held[-1].as_data(), now)
        assert stored is not None, "expired before it was renewed"
        held.append(renewed(stored, "team/gemma", now))
        for older, newer in pairwise(held[-2:]):
            for a, b in ((older, newer), (newer, older)):
                assert verified(a.server, b.trusted, now, server=True)
                assert verified(a.client, b.trusted, now, server=False)
    assert len({pair.authority.certificate for pair in held}) >= 4


def test_keys_of_the_secret_are_always_the_same(first: Certificates) -> None:
    """Or an applied Secret would keep what it should lose."""
    rotating = renewed(first, "team/gemma", START + AUTHORITY_LIFE * 0.7)
    assert set(rotating.as_data()) == set(first.as_data())
    assert first.as_data()[NEXT] == first.as_data()[BEFORE] == b""


def test_long_names_fit(first: Certificates) -> None:
    renewed(None, "n" * 63 + "/" + "m" * 63, START)


# --- on demand ---


def test_an_authority_that_is_older_than_asked_for_is_replaced_once(first: Certificates) -> None:
    asked = START + HOUR
    assert renewed(first, "team/gemma", asked - HOUR / 60, asked) == first, "not before that time"
    now, held, steps = asked, first, [first]
    while now < asked + timedelta(days=2):
        held = renewed(held, "team/gemma", now, asked)
        if held != steps[-1]:
            for a, b in ((held, steps[-1]), (steps[-1], held)):
                assert verified(a.server, b.trusted, now, server=True), "both ends may have either"
                assert verified(a.client, b.trusted, now, server=False)
            steps.append(held)
        now += timedelta(minutes=5)
    assert len(steps) == 4, "trusted, then used, then the one before is gone, and nothing after that"
    assert held.authority != first.authority
    assert held.trusted == held.authority.certificate


def test_asking_again_while_one_is_on_its_way_waits_for_its_end(first: Certificates) -> None:
    asked = START + HOUR
    trusting = renewed(first, "team/gemma", asked, asked)
    again = asked + HOUR / 60
    assert renewed(trusting, "team/gemma", again, again) == trusting
    done = renewed(trusting, "team/gemma", asked + TRUST_BEFORE_USE, again)
    done = renewed(done, "team/gemma", asked + TRUST_BEFORE_USE + KEEP_AFTER_USE, again)
    assert done.following is None
    later = renewed(done, "team/gemma", asked + 2 * HOUR, again)
    assert later.following is not None, "made before the second time that was asked for"
