"""Requests to the API server, as they go over the wire."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import yaml
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from kvasir_operator.cluster import BUDGETS, MERGE_PATCH, PODS, REVISIONS, SERVICES_OF_OURS, YAML, Cluster, Kind
from kvasir_operator.errors import ApiError, LeadershipLostError
from tests.kvasir_operator.edge.conftest import Recorder


@pytest.fixture
async def cluster(server: Recorder) -> AsyncIterator[Cluster]:
    """A client with a token."""
    configuration = Configuration(host=server.url)
    configuration.api_key["BearerToken"] = "Bearer secret"
    async with ApiClient(configuration) as client:
        yield Cluster(client, lambda: None, timeout_s=0.5)


def status(code: int, reason: str, message: str, **headers: str) -> web.Response:
    body = {"kind": "Status", "reason": reason, "message": message, "code": code}
    return web.json_response(
        body, status=code, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )


def test_paths() -> None:
    """Core and other groups, with and without namespace and subresource."""
    assert PODS.path(None) == "/api/v1/pods"
    assert PODS.path("n", "p", "status") == "/api/v1/namespaces/n/pods/p/status"
    assert SERVICES_OF_OURS.path("n") == "/apis/kvasir.dev/v1alpha1/namespaces/n/inferenceservices"
    assert Kind("a/v1", "things").path("", "x") == "/apis/a/v1/things/x"


@pytest.mark.parametrize("version", ["policy/v1beta1", "policy/v1"])
async def test_the_served_version_of_a_group_is_found_out(server: Recorder, cluster: Cluster, version: str) -> None:
    """Budgets were v1beta1 before Kubernetes 1.21; other kinds are asked for as they are."""
    server.answers = [web.json_response({"preferredVersion": {"groupVersion": version}}), web.json_response({})]
    await cluster.discover(BUDGETS)
    await cluster.get(BUDGETS, "n", "x")
    assert [request["path"] for request in server.requests] == [
        "/apis/policy",
        f"/apis/{version}/namespaces/n/poddisruptionbudgets/x",
    ]
    assert (cluster.version_of(BUDGETS), cluster.version_of(PODS)) == (version, "v1")


async def test_what_must_not_change_by_a_byte_is_sent_as_yaml(server: Recorder, cluster: Cluster) -> None:
    """The API server then writes it in its own form. It is JSON all the same, which YAML reads alike."""
    server.answers = [web.json_response({})]
    body = {"metadata": {"name": "r"}, "data": {"b": "ü😀", "a": [1, True, None]}}
    await cluster.create(REVISIONS, "n", body, YAML)
    assert server.requests[0]["headers"]["Content-Type"].startswith("application/yaml")
    assert json.loads(server.requests[0]["body"]) == yaml.safe_load(server.requests[0]["body"]) == body


async def test_lists_come_in_pages(server: Recorder, cluster: Cluster) -> None:
    """The token of each page is asked for next; an absent list is an empty one."""
    server.answers = [
        web.json_response({"metadata": {"resourceVersion": "7", "continue": "next"}, "items": [{"a": 1}]}),
        web.json_response({"metadata": {"resourceVersion": "7"}, "items": None}),
    ]
    pages = [page async for page in cluster.pages(PODS, "n", metadata_only=True, query={"labelSelector": "x"})]
    assert pages == [([{"a": 1}], "7"), ([], "7")]
    assert [request["query"] for request in server.requests] == [
        {"limit": "500", "labelSelector": "x"},
        {"limit": "500", "labelSelector": "x", "continue": "next"},
    ]
    assert "PartialObjectMetadataList" in server.requests[0]["headers"]["Accept"]
    assert server.requests[0]["headers"]["Authorization"] == "Bearer secret"


async def test_writes_name_their_author(server: Recorder, cluster: Cluster) -> None:
    """Field manager, content type, preconditions; empty texts reach the server as they are."""
    server.answers = [web.json_response({}) for _ in range(4)]
    await cluster.create(PODS, "n", {"metadata": {"name": "p"}, "empty": ""})
    await cluster.apply(PODS, "n", {"metadata": {"name": "p"}})
    await cluster.patch(PODS, "n", "p", {"status": {}}, MERGE_PATCH, "status")
    await cluster.delete(PODS, "n", "p", "u", grace_s=30)
    create, apply, patch, delete = server.requests
    assert (create["method"], create["query"]) == ("POST", {"fieldManager": "kvasir-operator"})
    assert json.loads(create["body"]) == {"metadata": {"name": "p"}, "empty": ""}
    assert apply["query"] == {"fieldManager": "kvasir-operator", "force": "true"}
    assert apply["headers"]["Content-Type"] == "application/apply-patch+yaml"
    assert (patch["path"], patch["headers"]["Content-Type"]) == ("/api/v1/namespaces/n/pods/p/status", MERGE_PATCH)
    options = json.loads(delete["body"])
    assert (options["preconditions"], options["gracePeriodSeconds"]) == ({"uid": "u"}, 30)


@pytest.mark.parametrize(
    ("answer", "code", "reason", "passing", "retry_after"),
    [
        (status(409, "AlreadyExists", "there"), 409, "AlreadyExists", True, None),
        (status(404, "NotFound", "gone"), 404, "NotFound", False, None),
        (status(403, "Forbidden", "exceeded quota"), 403, "Forbidden", False, None),
        (status(429, "TooManyRequests", "later", Retry_After="3"), 429, "TooManyRequests", True, 3.0),
        (web.Response(status=502, text="<html>bad gateway"), 502, "", True, None),
        (web.Response(status=200, text="not JSON"), 0, "NoJSON", True, None),
        (web.json_response([1]), 0, "NoObject", True, None),
    ],
)
async def test_errors(
    server: Recorder,
    cluster: Cluster,
    answer: web.Response,
    code: int,
    reason: str,
    passing: bool,
    retry_after: float | None,
) -> None:
    """What the server says, or what a proxy says in its place."""
    server.answers = [answer]
    with pytest.raises(ApiError) as caught:
        await cluster.get(PODS, "n", "p")
    found = caught.value
    assert (found.status, found.reason, found.passing, found.retry_after) == (code, reason, passing, retry_after)
    assert str(found)


async def test_no_answer(server: Recorder, cluster: Cluster) -> None:
    """A server that hangs, and one that is not there."""

    async def hang() -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    server.answers = [hang]
    with pytest.raises(ApiError, match="did not answer") as caught:
        await cluster.get(PODS, "n", "p")
    assert (caught.value.status, caught.value.passing) == (0, True)
    async with ApiClient(Configuration(host="http://127.0.0.1:1")) as client:
        with pytest.raises(ApiError, match="did not answer"):
            await Cluster(client, lambda: None, 1).get(PODS, "n", "p")


async def test_nothing_is_written_without_leadership(server: Recorder) -> None:
    """Reading is allowed; no write is even sent."""

    def fence() -> None:
        raise LeadershipLostError

    server.answers = [web.json_response({"metadata": {}})]
    async with ApiClient(Configuration(host=server.url)) as client:
        cluster = Cluster(client, fence, 1)
        await cluster.get(PODS, "n", "p")
        for write in (
            lambda: cluster.create(PODS, "n", {}),
            lambda: cluster.apply(PODS, "n", {"metadata": {"name": "p"}}),
            lambda: cluster.patch(PODS, "n", "p", {}, MERGE_PATCH),
            lambda: cluster.delete(PODS, "n", "p", "u"),
        ):
            with pytest.raises(LeadershipLostError):
                await write()
    assert len(server.requests) == 1
