"""Certificates: who they speak for, where they serve, who signed them."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from e2e.cluster.layout import Addresses
from e2e.cluster.pki import write_pki


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pki")
    write_pki(path, Addresses(0), "kvasir-node")
    return path


def load(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def subject(certificate: x509.Certificate, kind: x509.ObjectIdentifier) -> list[str]:
    return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(kind)]


def test_the_api_server_serves_under_every_name_it_is_called_by(folder: Path) -> None:
    """From pods, from the node and from the machine."""
    names = load(folder, "apiserver").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    }
    assert {str(a) for a in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "10.96.0.1", "10.243.0.2"}


@pytest.mark.parametrize(
    ("file", "user", "groups"),
    [
        ("node-kvasir-node", "system:node:kvasir-node", ["system:nodes"]),
        ("controller-manager", "system:kube-controller-manager", []),
        ("scheduler", "system:kube-scheduler", []),
        ("proxy", "system:kube-proxy", []),
        ("admin", "kubernetes-admin", ["system:masters"]),
    ],
)
def test_identities(folder: Path, file: str, user: str, groups: list[str]) -> None:
    """Users and groups as RBAC's bootstrap policy and the Node authorizer expect them; clients cannot serve."""
    certificate = load(folder, file)
    assert subject(certificate, NameOID.COMMON_NAME) == [user]
    assert subject(certificate, NameOID.ORGANIZATION_NAME) == groups
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize(
    ("file", "authority"),
    [("admin", "ca"), ("kubelet-server", "ca"), ("front-proxy-client", "front-proxy-ca"), ("etcd", "etcd-ca")],
)
def test_each_certificate_is_signed_by_its_own_authority(folder: Path, file: str, authority: str) -> None:
    """A client certificate of the cluster is worth nothing to etcd."""
    load(folder, file).verify_directly_issued_by(load(folder, authority))
    others = {"ca", "front-proxy-ca", "etcd-ca"} - {authority}
    for other in others:
        with pytest.raises(ValueError, match="Issuer"):
            load(folder, file).verify_directly_issued_by(load(folder, other))


def test_keys_are_private(folder: Path) -> None:
    """Nobody else on the machine can read them."""
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {0o600}
