"""Certificates of the webhook: what is made, when it is replaced, and who is trusted meanwhile."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from kvasir_operator.certificates import (
    AUTHORITY_LIFETIME,
    AUTHORITY_RENEWED_BEFORE,
    LIFETIME,
    RENEWED_BEFORE,
    Certificates,
)

NAME = "kvasir-operator-webhook.kvasir-system.svc"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def trusts(bundle: bytes, certificate: bytes, at: datetime, name: str = NAME) -> bool:
    """Whether a client that trusts `bundle` accepts the certificate for that name, by the rules of the web."""
    builder = PolicyBuilder().store(Store(x509.load_pem_x509_certificates(bundle))).time(at)
    verifier = builder.build_server_verifier(x509.DNSName(name))
    try:
        verifier.verify(x509.load_pem_x509_certificate(certificate), [])
    except VerificationError:
        return False
    return True


def test_clients_trust_what_is_made_for_its_name_and_its_time_alone() -> None:
    made = Certificates.make(NAME, NOW)
    assert trusts(made.bundle, made.certificate, NOW)
    assert not trusts(made.bundle, made.certificate, NOW, "other.kvasir-system.svc")
    assert not trusts(made.bundle, made.certificate, NOW + LIFETIME + timedelta(seconds=1))
    assert not trusts(Certificates.make(NAME, NOW).bundle, made.certificate, NOW)


@pytest.mark.parametrize(
    ("age", "authority_changes", "certificate_changes"),
    [
        (timedelta(0), False, False),
        (LIFETIME - RENEWED_BEFORE - timedelta(seconds=1), False, False),
        (LIFETIME - RENEWED_BEFORE, False, True),
        (LIFETIME + timedelta(days=1), False, True),
        (AUTHORITY_LIFETIME - AUTHORITY_RENEWED_BEFORE, True, True),
        (AUTHORITY_LIFETIME + timedelta(days=1), True, True),
    ],
)
def test_each_is_replaced_before_its_end(age: timedelta, authority_changes: bool, certificate_changes: bool) -> None:
    made = Certificates.make(NAME, NOW)
    renewed = made.renewed(NAME, NOW + age)
    if not certificate_changes:
        assert renewed is None
        return
    assert renewed is not None
    assert (renewed.authority != made.authority) == authority_changes
    assert trusts(renewed.bundle, renewed.certificate, NOW + age)
    assert renewed.renewed(NAME, NOW + age) is None


def test_a_certificate_in_use_stays_trusted_while_the_authority_is_replaced() -> None:
    """Replicas that have not seen the new one yet serve the old one; later bundles hold two authorities at most."""
    made = Certificates.make(NAME, NOW)
    late = NOW + AUTHORITY_LIFETIME - AUTHORITY_RENEWED_BEFORE
    before = made.renewed(NAME, late - timedelta(days=1))
    assert before is not None
    after = before.renewed(NAME, late)
    assert after is not None
    assert trusts(after.bundle, before.certificate, late)
    assert len(x509.load_pem_x509_certificates(after.bundle)) == 2
    much_later = after.renewed(NAME, late + AUTHORITY_LIFETIME)
    assert much_later is not None
    assert len(x509.load_pem_x509_certificates(much_later.bundle)) == 1


def test_another_namespace_needs_another_certificate() -> None:
    made = Certificates.make(NAME, NOW)
    moved = made.renewed("kvasir-operator-webhook.elsewhere.svc", NOW)
    assert moved is not None
    assert moved.bundle == made.bundle
    assert trusts(moved.bundle, moved.certificate, NOW, "kvasir-operator-webhook.elsewhere.svc")


def test_what_is_kept_in_a_secret_is_read_again() -> None:
    made = Certificates.make(NAME, NOW)
    assert Certificates.read(made.to_data()) == made
    assert made.expires == NOW + LIFETIME


def broken() -> dict[str, dict[str, bytes]]:
    made, other = Certificates.make(NAME, NOW), Certificates.make(NAME, NOW)
    return {
        "a part is missing": {key: value for key, value in made.to_data().items() if key != "ca.key"},
        "no PEM": {**made.to_data(), "tls.crt": b"certificate"},
        "a key that cannot be read": {**made.to_data(), "tls.key": b"key"},
        "a key of another certificate": replace(made, key=other.key).to_data(),
        "a key of another authority": replace(made, authority_key=other.authority_key).to_data(),
        "signed by another authority": replace(made, certificate=other.certificate, key=other.key).to_data(),
    }


@pytest.mark.parametrize("data", broken().values(), ids=broken().keys())
def test_parts_that_do_not_belong_together_are_not_used(data: dict[str, bytes]) -> None:
    assert Certificates.read(data) is None
