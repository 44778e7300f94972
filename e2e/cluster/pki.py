"""The cluster's certificates: three authorities (cluster, front proxy, etcd), EC keys, one identity per component."""

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from e2e.cluster.layout import CLUSTER_DOMAIN, Addresses

LIFETIME = dt.timedelta(days=3650)
BACKDATED = dt.timedelta(hours=1)  # so that a clock set back a little does not refuse them


@dataclass(frozen=True)
class Identity:
    """Who a certificate speaks for: user name, groups, and the names and addresses it serves under."""

    file: str
    user: str
    groups: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    @property
    def serves(self) -> bool:
        return bool(self.names or self.addresses)


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def cluster_identities(addresses: Addresses, node_name: str) -> list[Identity]:
    """The identities that the cluster's authority signs; users and groups are those of RBAC's bootstrap policy."""
    service_names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
    return [
        Identity(
            "apiserver",
            "kube-apiserver",
            names=("localhost", *service_names, f"kubernetes.default.svc.{CLUSTER_DOMAIN}"),
            addresses=("127.0.0.1", addresses.api_service, addresses.node),
        ),
        Identity("apiserver-kubelet-client", "kube-apiserver-kubelet-client", groups=("system:masters",)),
        Identity("admin", "kubernetes-admin", groups=("system:masters",)),
        Identity("controller-manager", "system:kube-controller-manager"),
        Identity("scheduler", "system:kube-scheduler"),
        Identity("proxy", "system:kube-proxy"),
        Identity("dns", "kvasir:dns"),
        Identity("heartbeat", "kvasir:heartbeat"),
        Identity(f"node-{node_name}", f"system:node:{node_name}", groups=("system:nodes",)),
        Identity("kubelet-server", f"system:node:{node_name}", names=(node_name,), addresses=(addresses.node,)),
    ]


def write_pki(folder: Path, addresses: Addresses, node_name: str) -> None:
    """Writes every key and certificate (PEM, keys 0600) into the folder; `NAME.crt` and `NAME.key`."""
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    cluster = _write_authority(folder, "ca", "kvasir-cluster")
    front_proxy = _write_authority(folder, "front-proxy-ca", "kvasir-front-proxy")
    etcd = _write_authority(folder, "etcd-ca", "kvasir-etcd")
    for identity in cluster_identities(addresses, node_name):
        write_certificate(folder, identity, cluster)
    write_certificate(folder, Identity("front-proxy-client", "front-proxy-client"), front_proxy)
    write_certificate(folder, Identity("etcd", "etcd", names=("localhost",), addresses=("127.0.0.1",)), etcd)
    write_certificate(folder, Identity("apiserver-etcd-client", "kube-apiserver"), etcd)
    _write_service_account_keys(folder)


def _write_authority(folder: Path, file: str, name: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, subject, key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    usage = _key_usage(signs_certificates=True)
    certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    _write_pair(folder, file, certificate, key)
    return Authority(certificate, key)


def write_certificate(folder: Path, identity: Identity, authority: Authority) -> None:
    """Makes a key and has the authority sign a certificate for it: `FILE.key` and `FILE.crt`."""
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in identity.groups]
    attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, identity.user))
    builder = _builder(x509.Name(attributes), authority.certificate.subject, key)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if identity.serves else [])]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if identity.serves:
        builder = builder.add_extension(x509.SubjectAlternativeName(_alternative_names(identity)), critical=False)
    _write_pair(folder, identity.file, builder.sign(authority.key, hashes.SHA256()), key)


def _alternative_names(identity: Identity) -> list[x509.GeneralName]:
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in identity.addresses]
    return [*(x509.DNSName(name) for name in identity.names), *addresses]


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    start = dt.datetime.now(dt.UTC) - BACKDATED
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(start).not_valid_after(start + LIFETIME)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not signs_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_pair(folder: Path, file: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    (folder / f"{file}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_key(folder / f"{file}.key", key)


def _write_service_account_keys(folder: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write_key(folder / "service-account.key", key)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "service-account.pub").write_bytes(public)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
