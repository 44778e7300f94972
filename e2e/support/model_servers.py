"""Servers on this machine that pods fetch models from: HTTPS with an authority of its own, and S3."""

import datetime as dt
import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for


def address_for_pods(kubectl: Kubectl) -> str:
    """This machine's address on the way to the node: pods reach it there."""
    [node, *_] = kubectl.list("nodes")
    internal = next(each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((internal, 9))  # sends nothing: the kernel only chooses the route
        return str(probe.getsockname()[0])


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


@contextmanager
def https(folder: Path, address: str, scratch: Path) -> Iterator[tuple[str, str]]:
    """Serve `folder`; yields the base address and the certificate to trust, as PEM."""
    certificate, key = scratch / "server.pem", scratch / "server.key"
    _self_signed(address, certificate, key)
    server = ThreadingHTTPServer((address, 0), partial(_QuietHandler, directory=str(folder)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://{address}:{server.server_port}", certificate.read_text()
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


SECRETS = "/var/run/secrets/kvasir/source"
"""Where pods find the Secret of a source."""


def secret_of(certificate: str, name: str = "models") -> Object:
    """The Secret with which a source is trusted that `https` serves."""
    data = {"ca.crt": certificate, "SSL_CERT_FILE": f"{SECRETS}/ca.crt"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def _self_signed(address: str, certificate: Path, key: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "models")])
    now = dt.datetime.now(tz=dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key.write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )


@contextmanager
def s3(folder: Path, address: str, bucket: str) -> Iterator[str]:
    """An S3 server whose bucket holds the files of `folder` under its name; yields the endpoint."""
    port = _free_port(address)
    endpoint = f"http://{address}:{port}"
    server = subprocess.Popen(
        [_moto_server(), "-H", address, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for("the S3 server", lambda: _listens(address, port), timeout=30)
        httpx.put(f"{endpoint}/{bucket}").raise_for_status()
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            httpx.put(f"{endpoint}/{bucket}/{folder.name}/{file.name}", content=file.read_bytes()).raise_for_status()
        yield endpoint
    finally:
        server.terminate()
        server.wait(timeout=10)


def _moto_server() -> str:
    """The S3 double, in an environment of its own: what it needs contradicts the Kubernetes client's needs."""
    folder = Path.home() / ".cache" / "kvasir" / "tools" / "moto"
    program = folder / "bin" / "moto_server"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", "moto[s3,server]>=5.1,<6"], check=True)
    return str(program)


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False
