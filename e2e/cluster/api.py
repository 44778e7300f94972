"""A small client for the API server, for what the cluster program itself must read and write."""

import base64
import json
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from e2e.cluster.errors import ClusterError

MERGE_PATCH = "application/merge-patch+json"
Object = dict[str, Any]


class Api:
    """JSON over HTTPS with a client certificate. Use as a context manager."""

    def __init__(self, server: str, context: ssl.SSLContext, timeout: float = 10.0) -> None:
        self._http = httpx.Client(base_url=server, verify=context, timeout=timeout, trust_env=False)

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """A client for the current context of a kubeconfig that holds its certificates (as `up` writes it)."""
        config = yaml.safe_load(path.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(base64.b64decode(user["client-certificate-data"]))
            pair.write(base64.b64decode(user["client-key-data"]))
            pair.flush()
            context.load_cert_chain(pair.name)
        return cls(cluster["server"], context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str) -> Object:
        return self._json(self._send("GET", path, params=query))

    def find(self, path: str) -> Object | None:
        """The object, or None when there is none."""
        response = self._send("GET", path)
        return None if response.status_code == httpx.codes.NOT_FOUND else self._json(response)

    def create(self, path: str, body: Object) -> bool:
        """Creates an object in a collection; False when one of that name exists already."""
        response = self._send("POST", path, json=body)
        if response.status_code == httpx.codes.CONFLICT:
            return False
        self._json(response)
        return True

    def replace(self, path: str, body: Object) -> Object:
        return self._json(self._send("PUT", path, json=body))

    def merge(self, path: str, body: Object) -> Object:
        """A JSON merge patch."""
        headers = {"Content-Type": MERGE_PATCH}
        return self._json(self._send("PATCH", path, content=json.dumps(body), headers=headers))

    def delete(self, path: str) -> bool:
        """Deletes an object; False when there was none."""
        response = self._send("DELETE", path)
        if response.status_code == httpx.codes.NOT_FOUND:
            return False
        self._json(response)
        return True

    def text(self, path: str) -> str | None:
        """The body of a plain endpoint such as /readyz, or None when it does not answer 200."""
        try:
            response = self._send("GET", path)
        except ClusterError:
            return None
        return response.text if response.status_code == httpx.codes.OK else None

    def watch(self, path: str, version: str) -> Iterator[Object]:
        """Events of a collection from a resource version on, until the server ends the watch."""
        query = {"watch": "1", "resourceVersion": version, "timeoutSeconds": "300"}
        with self._http.stream("GET", path, params=query, timeout=httpx.Timeout(10.0, read=330.0)) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                yield json.loads(line)

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **request)
        except httpx.TransportError as error:
            where = self._http.base_url
            raise ClusterError(f"the API server at {where} does not answer {method} {path}: {error!r}") from error

    @staticmethod
    def _json(response: httpx.Response) -> Object:
        if response.is_error:
            request = response.request
            raise ClusterError(f"{request.method} {request.url}: {response.status_code}: {_message(response)}")
        result: Object = response.json()
        return result


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json().get("message", response.text))
    except ValueError:
        return response.text[:500]


def wait_until(what: str, check: Any, timeout: float, interval: float = 0.1) -> None:
    """Calls `check` until it returns something true.

    Raises:
        ClusterError: it did not within `timeout` seconds; or whatever `check` raises.
    """
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {timeout:.0f} s")
        time.sleep(interval)
