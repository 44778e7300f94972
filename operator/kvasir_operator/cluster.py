"""The Kubernetes API as the operator uses it: JSON in, JSON out, errors as `ApiError`.

Requests go through `kubernetes.aio`'s client, which brings TLS, credentials and their renewal. Its generated models
are left out: they double the time of every answer, and the operator reads pods into values of its own.

Every write first asks the fence whether this process still leads.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from kubernetes.aio.client import ApiClient
from pydantic_core import from_json

from kvasir_operator import metrics
from kvasir_operator.api import v1alpha1
from kvasir_operator.errors import NAMESPACE_ENDS, ApiError
from kvasir_operator.resources import names

Manifest = dict[str, Any]
Query = Mapping[str, str | int]

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
YAML: Final = "application/yaml"
"""What the API server reads in it, it writes down in a form of its own, raw parts included: blanks and the order of
keys stay the same when the object is patched. `data` of a ControllerRevision must not change by a byte."""

METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

PAGE_SIZE: Final = 500
"""Objects in one answer of a list: a few MB of pods."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object, by the address of its collection."""

    api_version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """`/api/v1/namespaces/x/pods/y/status`; without a namespace the objects of all of them."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        parts = [root + self.api_version]
        parts += ["namespaces", namespace] if namespace else []
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


SERVICES_OF_OURS: Final = Kind(v1alpha1.API_VERSION, v1alpha1.PLURAL)
PODS: Final = Kind("v1", "pods")
SERVICES: Final = Kind("v1", "services")
SECRETS: Final = Kind("v1", "secrets")
CONFIG_MAPS: Final = Kind("v1", "configmaps")
EVENTS: Final = Kind("v1", "events")
NODES: Final = Kind("v1", "nodes")
REVISIONS: Final = Kind("apps/v1", "controllerrevisions")
BUDGETS: Final = Kind("policy/v1", "poddisruptionbudgets")
"""Served as policy/v1beta1 before Kubernetes 1.21: `Cluster.discover` finds out."""
NETWORK_POLICIES: Final = Kind("networking.k8s.io/v1", "networkpolicies")
LEASES: Final = Kind("coordination.k8s.io/v1", "leases")
VALIDATING: Final = Kind("admissionregistration.k8s.io/v1", "validatingwebhookconfigurations")
MUTATING: Final = Kind("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations")
"""Both of the whole cluster: their namespace is empty."""


class Cluster:
    """Requests to the API server. `fence` raises LeadershipLostError when this process may not write."""

    def __init__(self, client: ApiClient, fence: Callable[[], None], timeout_s: float) -> None:
        self._client = client
        self._fence = fence
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._versions: dict[Kind, str] = {}

    async def discover(self, kind: Kind) -> None:
        """Use the version of the kind's group that the API server prefers. Raises ApiError."""
        group = kind.api_version.partition("/")[0]
        answer = await self._request("GET", kind, f"/apis/{group}")
        self._versions[kind] = answer["preferredVersion"]["groupVersion"]

    def version_of(self, kind: Kind) -> str:
        """The `apiVersion` that the API server is asked in."""
        return self._versions.get(kind, kind.api_version)

    def _path(self, kind: Kind, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        return Kind(self.version_of(kind), kind.plural).path(namespace, name, subresource)

    async def pages(
        self, kind: Kind, namespace: str | None = None, *, metadata_only: bool = False, query: Query | None = None
    ) -> AsyncIterator[tuple[list[Manifest], str]]:
        """List in pages: items, and the list's resource version, which is the same for all pages.

        `metadata_only` leaves out spec and status: a tenth of the bytes.
        """
        accept = METADATA_ONLY if metadata_only else JSON
        token = ""
        while True:
            given = {"limit": PAGE_SIZE, **(query or {})} | ({"continue": token} if token else {})
            page = await self._request("GET", kind, self._path(kind, namespace), given, accept=accept)
            yield page.get("items") or [], page["metadata"].get("resourceVersion", "")
            token = page["metadata"].get("continue") or ""
            if not token:
                return

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        return await self._request("GET", kind, self._path(kind, namespace, name))

    async def create(self, kind: Kind, namespace: str, body: Manifest, content_type: str = JSON) -> Manifest:
        return await self._write("POST", kind, self._path(kind, namespace), body, content_type=content_type)

    async def apply(self, kind: Kind, namespace: str, body: Manifest) -> Manifest:
        """Server-side apply: fields in `body` become ours, others stay as they are."""
        path = self._path(kind, namespace, body["metadata"]["name"])
        return await self._write("PATCH", kind, path, body, {"force": "true"}, APPLY_PATCH)

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Manifest, content_type: str, subresource: str | None = None
    ) -> Manifest:
        return await self._write(
            "PATCH", kind, self._path(kind, namespace, name, subresource), body, None, content_type
        )

    async def replace(self, kind: Kind, namespace: str, body: Manifest) -> Manifest:
        """Write the whole object in place of the version that it names; a conflict if there is a newer one."""
        return await self._write("PUT", kind, self._path(kind, namespace, body["metadata"]["name"]), body)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, grace_s: int | None = None) -> Manifest:
        """Delete exactly that object: another one of the same name is a conflict. A pod may end within `grace_s`."""
        body: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        return await self._write("DELETE", kind, self._path(kind, namespace, name), body)

    async def _write(
        self,
        method: str,
        kind: Kind,
        path: str,
        body: Manifest,
        query: Query | None = None,
        content_type: str = JSON,
    ) -> Manifest:
        self._fence()
        given = {"fieldManager": names.OPERATOR, **(query or {})} if method != "DELETE" else {}
        return await self._request(method, kind, path, given, body, content_type)

    async def _request(
        self,
        method: str,
        kind: Kind,
        path: str,
        query: Query | None = None,
        body: Manifest | None = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Manifest:
        headers = {"Accept": accept, "Content-Type": content_type}
        sent = json.dumps(body, ensure_ascii=False) if content_type == YAML else body  # JSON is YAML
        code = 0
        with metrics.API_SECONDS.labels(method, kind.plural).time():
            try:
                prepared = await self._client.param_serialize(
                    method, path, query_params=list((query or {}).items()), header_params=headers, body=sent,
                    auth_settings=["BearerToken"],
                )  # fmt: skip
                answer = await self._client.call_api(*prepared, _request_timeout=self._timeout)
                code, data = answer.status, await answer.read()
            except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
                raise ApiError(
                    0, "NoAnswer", f"the API server did not answer: {str(error) or type(error).__name__}"
                ) from error
            finally:
                metrics.API_REQUESTS.labels(method, kind.plural, str(code)).inc()
        if code >= 400:
            raise _error_of(code, data, answer.headers)
        return _read(data)


def _read(data: bytes) -> Manifest:
    try:
        content = from_json(data)
    except ValueError as error:
        raise ApiError(0, "NoJSON", f"the API server's answer is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ApiError(0, "NoObject", "the API server's answer is no object")
    return content


def _error_of(code: int, data: bytes, headers: Mapping[str, str]) -> ApiError:
    """Read a Status object; a proxy in between may have sent something else."""
    status: Manifest = {}
    with contextlib.suppress(ApiError):
        status = _read(data)
    message = str(status.get("message") or data[:200].decode(errors="replace"))
    after = headers.get("Retry-After", "")
    causes = [str(cause.get("reason")) for cause in (status.get("details") or {}).get("causes") or []]
    reason = NAMESPACE_ENDS if NAMESPACE_ENDS in causes else str(status.get("reason") or "")
    return ApiError(code, reason, message, float(after) if after.isdecimal() else None)
