"""The API server reaches admission webhooks through Services, wherever these lead."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from e2e.cluster import pki
from e2e.cluster.layout import Addresses, Layout
from e2e.cluster.record import read_record
from e2e.support.kubectl import Kubectl, KubectlError
from e2e.support.waiting import wait_for

Object = dict[str, Any]
NAME = "refuse.kvasir.dev"


class Refuser(BaseHTTPRequestHandler):
    """A webhook that refuses whatever it is asked about."""

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = {"uid": review["request"]["uid"], "allowed": False, "status": {"message": "refused by the webhook"}}
        body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


def test_the_api_server_asks_webhooks_behind_services(space: Kubectl, layout: Layout, tmp_path: Path) -> None:
    """A webhook on this machine, behind a Service: its certificate's name is checked and its refusal is shown."""
    record = read_record(layout)
    assert record
    address = Addresses(record.slot).host
    certificate = serving_certificate(layout, tmp_path, f"hook.{space.namespace}.svc")
    with refuser(address, *certificate) as port:
        space.apply(*service(address, port), configuration(space.namespace or "", layout))
        try:
            wait_for("the refusal", lambda: "refused by the webhook" in refusal(space), timeout=20)
        finally:
            space.run("delete", "validatingwebhookconfiguration", NAME)


def serving_certificate(layout: Layout, folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for the Service's name, signed by the cluster's authority, and its key."""
    certificate = x509.load_pem_x509_certificate((layout.pki / "ca.crt").read_bytes())
    key = serialization.load_pem_private_key((layout.pki / "ca.key").read_bytes(), password=None)
    authority = pki.Authority(certificate, key)  # type: ignore[arg-type]
    pki.write_certificate(folder, pki.Identity("hook", "hook", names=(name,)), authority)
    return folder / "hook.crt", folder / "hook.key"


@contextmanager
def refuser(address: str, certificate: Path, key: Path) -> Iterator[int]:
    """The webhook, serving HTTPS; yields its port."""
    server = ThreadingHTTPServer((address, 0), Refuser)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def service(address: str, port: int) -> list[Object]:
    """A Service without a selector, and the endpoint behind it."""
    metadata = {"name": "hook"}
    endpoint = {"addresses": [{"ip": address}], "ports": [{"port": port}]}
    spec = {"ports": [{"port": 443, "targetPort": port}]}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [endpoint]},
    ]


def configuration(namespace: str, layout: Layout) -> Object:
    """Asks the webhook about the ConfigMaps that carry a label of this test."""
    authority = base64.b64encode((layout.pki / "ca.crt").read_bytes()).decode()
    hook = {
        "name": NAME,
        "clientConfig": {"service": {"namespace": namespace, "name": "hook"}, "caBundle": authority},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
        "objectSelector": {"matchLabels": {"test": "webhook"}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
    }
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    return {**kind, "metadata": {"name": NAME}, "webhooks": [hook]}


def refusal(space: Kubectl) -> str:
    """What the API server says to a ConfigMap with the label; empty when it takes it."""
    metadata = {"name": "wanted", "labels": {"test": "webhook"}}
    try:
        space.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    except KubectlError as error:
        return str(error)
    space.run("delete", "configmap", "wanted")
    return ""
