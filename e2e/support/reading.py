"""Reads objects through one `kubectl proxy`: a kubectl for each look takes a tenth of a second of CPU.

What tests await they look at four times a second, beside the very pods that need the CPU to get there.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from e2e.support.kubectl import Kubectl, KubectlError, Object


@dataclass(frozen=True)
class Resource:
    """Where the objects of a kind are."""

    prefix: str
    """`/api/v1`, or `/apis/<group>/<version>`."""
    plural: str
    namespaced: bool

    def path(self, namespace: str | None, name: str = "") -> str:
        space = f"/namespaces/{namespace or 'default'}" if self.namespaced else ""
        return f"{self.prefix}{space}/{self.plural}" + (f"/{name}" if name else "")


class Reader:
    """Knows kinds by all the names that kubectl knows them by."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._resources: dict[str, Resource] = {}

    def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """The object, or None where there is none."""
        response = self._http.get(self._resource(kind).path(namespace, name))
        return None if response.status_code == httpx.codes.NOT_FOUND else _checked(response)

    def list(self, kind: str, namespace: str | None, selector: str = "") -> list[Object]:
        """The objects that the label selector matches."""
        path = self._resource(kind).path(namespace)
        found = _checked(self._http.get(path, params={"labelSelector": selector} if selector else {}))
        shared = {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List")}
        return [shared | each for each in found["items"]]

    def _resource(self, kind: str) -> Resource:
        if kind not in self._resources:
            self._discover()
        if kind not in self._resources:
            raise KubectlError(f"the server knows no kind {kind!r}")
        return self._resources[kind]

    def _discover(self) -> None:
        """Of kinds with the same name that of the first group counts, which is the core one."""
        groups = _checked(self._http.get("/apis"))["groups"]
        prefixes = ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)]
        for prefix in prefixes:
            for each in _checked(self._http.get(prefix))["resources"]:
                if "/" not in each["name"]:
                    self._learn(Resource(prefix, each["name"], each["namespaced"]), each)

    def _learn(self, resource: Resource, described: dict[str, Any]) -> None:
        singular = described.get("singularName") or described["kind"].lower()
        for name in (resource.plural, singular, *described.get("shortNames", ())):
            self._resources.setdefault(name, resource)


def _checked(response: httpx.Response) -> Object:
    if response.is_error:
        raise KubectlError(f"{response.request.url.path}: {response.status_code}: {response.text[:500]}")
    return dict(response.json())


@contextmanager
def reading(kubectl: Kubectl) -> Iterator[Kubectl]:
    """The same kubectl, whose `get` and `list` go through a proxy for as long as the block runs."""
    with kubectl.background("proxy", "--port=0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"on (\S+:\d+)", line)
        if address is None:
            raise KubectlError(f"kubectl proxy: {line}{process.stdout.read()}")
        with httpx.Client(base_url=f"http://{address[1]}", timeout=60) as http:
            yield kubectl.reading_by(Reader(http))
