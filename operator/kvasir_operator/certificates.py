"""Certificates of the admission webhook: an authority of the operator's own, and one certificate that it signs.

No network and no clock: PEM in, PEM out. An authority outlives every certificate that it signed, since it is replaced
while it is valid for longer than a certificate is at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME: Final = timedelta(days=730)
AUTHORITY_RENEWED_BEFORE: Final = timedelta(days=180)
"""Time before its end at which an authority is replaced."""
LIFETIME: Final = timedelta(days=90)
RENEWED_BEFORE: Final = timedelta(days=30)
"""Time before its end at which a certificate is replaced: a month in which a failure to do so can be seen."""
BACKDATED: Final = timedelta(hours=1)
"""So that a clock that is a little behind does not refuse what was just made."""

_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the replicas of the operator share, as PEM.

    `bundle` holds the authority that signs, followed by the one before it as long as somebody may still use that.
    """

    bundle: bytes
    authority_key: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def make(cls, name: str, now: datetime, trusted: bytes = b"") -> Self:
        """A new authority and a certificate for `name`; `trusted` is an authority that clients shall trust as well."""
        key = ec.generate_private_key(ec.SECP256R1())
        authority = _sign_authority(key, now)
        return cls(_pem(authority) + trusted, _key_pem(key), *_issue(name, authority, key, now))

    @classmethod
    def read(cls, data: Mapping[str, bytes]) -> Self | None:
        """The certificates in a Secret's data; None where a part is missing or does not belong to the others."""
        try:
            found = cls(data["ca.crt"], data["ca.key"], data["tls.crt"], data["tls.key"])
            authorities = x509.load_pem_x509_certificates(found.bundle)
            certificate = x509.load_pem_x509_certificate(found.certificate)
            trusted = any(_signed(certificate, each) for each in authorities)
            pairs = ((authorities[0], found.authority_key), (certificate, found.key))
            fits = trusted and all(each.public_key() == _load_key(key).public_key() for each, key in pairs)
        except (KeyError, ValueError, TypeError):
            return None
        return found if fits else None

    def to_data(self) -> dict[str, bytes]:
        """The keys of a Secret of type `kubernetes.io/tls`, and the authority's beside them."""
        return {
            "ca.crt": self.bundle,
            "ca.key": self.authority_key,
            "tls.crt": self.certificate,
            "tls.key": self.key,
        }

    @property
    def authority(self) -> bytes:
        """The authority that signs, without the one before it."""
        return _pem(x509.load_pem_x509_certificates(self.bundle)[0])

    @property
    def expires(self) -> datetime:
        """When the certificate ends, in UTC."""
        return x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc

    def renewed(self, name: str, now: datetime) -> Self | None:
        """What should take their place by now; None while they are good."""
        authority = x509.load_pem_x509_certificates(self.bundle)[0]
        if now >= authority.not_valid_after_utc - AUTHORITY_RENEWED_BEFORE:
            return self.make(name, now, self.authority if now < authority.not_valid_after_utc else b"")
        certificate = x509.load_pem_x509_certificate(self.certificate)
        if now < certificate.not_valid_after_utc - RENEWED_BEFORE and name in _names_of(certificate):
            return None
        return self.reissued(name, now)

    def reissued(self, name: str, now: datetime) -> Self:
        """Another certificate of the same authority."""
        authority = x509.load_pem_x509_certificates(self.bundle)[0]
        certificate, key = _issue(name, authority, _load_key(self.authority_key), now)
        return replace(self, certificate=certificate, key=key)


def _sign_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    subject = _subject("kvasir-operator-webhook-ca")
    builder = _builder(subject, subject, key.public_key(), key.public_key(), now, AUTHORITY_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True).sign(key, hashes.SHA256())


def _issue(
    name: str, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, now: datetime
) -> tuple[bytes, bytes]:
    """A certificate for a server of that name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject("kvasir-operator-webhook")
    builder = _builder(subject, authority.subject, key.public_key(), authority_key.public_key(), now, LIFETIME)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return _pem(builder.sign(authority_key, hashes.SHA256())), _key_pem(key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in allowed for name in _USAGES})


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _names_of(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return names.value.get_values_for_type(x509.DNSName)


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except InvalidSignature:
        return False
    return True


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        msg = f"must be a key on an elliptic curve, got {type(key).__name__}"
        raise TypeError(msg)
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
