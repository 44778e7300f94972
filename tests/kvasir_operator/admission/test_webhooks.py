"""The webhook as the API server sees it: HTTPS with the certificate of the Secret, reviews in, verdicts out."""

import base64
import io
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from kvasir_operator.observe import read_desired
from kvasir_operator.resources import names
from kvasir_operator.settings import Settings
from kvasir_operator.webhook_certificates import CertificateKeeper
from kvasir_operator.webhooks import AdmissionReview, find_problems, listen, make_app, make_context, serve
from tests.kvasir_operator.admission.fakes import FakeApi

Manifest = dict[str, Any]
HOST = names.webhook_host("kvasir-system")


def service(**spec: Any) -> Manifest:
    metadata = {"name": "tiny", "namespace": "team", "uid": "u", "generation": 1}
    sound = {"model": {"source": {"uri": "pvc://models/m"}}, "accelerator": {"vendor": "cpu"}}
    return {"apiVersion": "kvasir.dev/v1alpha1", "kind": "InferenceService", "metadata": metadata, "spec": sound | spec}


BAD = service(scaling={"minReplicas": 4, "maxReplicas": 2})


def review(wanted: Manifest | None, before: Manifest | None = None, **request: Any) -> Manifest:
    operation = "DELETE" if wanted is None else "UPDATE" if before else "CREATE"
    content = {"uid": "r-1", "operation": operation, "namespace": "team", "object": wanted, "oldObject": before}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": content | request}


def leaving(manifest: Manifest) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "deletionTimestamp": "2026-03-01T12:00:00Z"}}


def relabelled(manifest: Manifest) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "labels": {"team": "a"}}}


TABLE = [
    ("sound", review(service()), Settings(), ""),
    ("bad", review(BAD), Settings(), "spec.scaling.maxReplicas: must be at least minReplicas (4), got 2"),
    ("bad shape", review(service(replicas=-1)), Settings(), "spec.replicas: must be at least 0, got -1"),
    ("becomes bad", review(BAD, service()), Settings(), "spec.scaling.maxReplicas"),
    ("becomes sound", review(service(), BAD), Settings(), ""),
    ("was bad and stays so", review(relabelled(BAD), BAD), Settings(), ""),
    ("bad and being deleted", review(leaving(BAD), service()), Settings(), ""),
    ("deleted", review(None, BAD), Settings(), ""),
    ("of our namespace", review(BAD), Settings(namespaces=["team"]), "spec.scaling.maxReplicas"),
    ("of another namespace", review(BAD), Settings(namespaces=["other"]), ""),
    (
        "against the settings",
        review(service(model={"source": {"uri": "file:///etc"}})),
        Settings(),
        "spec.model.source.uri: needs the operator's setting KVASIR_OPERATOR_ALLOW_FILE_SOURCES to be on",
    ),
]


@pytest.mark.parametrize(("posted", "settings", "problem"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_is_refused(posted: Manifest, settings: Settings, problem: str) -> None:
    found = find_problems(AdmissionReview.model_validate(posted).request, settings)
    assert bool(found) == bool(problem)
    assert "\n".join(map(str, found)).startswith(problem)


def test_the_loop_reports_what_the_webhook_refuses() -> None:
    """So that nothing is lost where the webhook is absent."""
    bad = service(model={"source": {"uri": "file:///etc"}}, replicas=1)
    desired = read_desired(bad, Settings())
    assert find_problems(AdmissionReview.model_validate(review(bad)).request, Settings()) == desired.source_errors


@asynccontextmanager
async def webhook(settings: Settings, api: FakeApi) -> AsyncIterator[str]:
    async with serve(settings, api.cluster, lambda: datetime.now(UTC)):
        yield f"https://127.0.0.1:{settings.webhook_port}/validate"


def listening(**values: Any) -> Settings:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return Settings(webhook=True, webhook_port=port, **values)


async def ask(url: str, bundle: bytes, body: bytes) -> tuple[int, Any]:
    """Post as the API server does: it trusts the configuration's bundle alone, and expects the Service's name."""
    context = ssl.create_default_context(cadata=bundle.decode())
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=io.BytesIO(body), ssl=context, server_hostname=HOST) as answer,
    ):
        return answer.status, await answer.json() if answer.content_type == "application/json" else await answer.text()


async def test_a_refusal_names_field_bound_and_value() -> None:
    api = FakeApi()
    async with webhook(listening(), api) as url:
        status, told = await ask(url, api.bundle, json.dumps(review(BAD)).encode())
    assert (status, told["kind"], told["apiVersion"]) == (200, "AdmissionReview", "admission.k8s.io/v1")
    problem = "must be at least minReplicas (4), got 2"
    assert told["response"] == {
        "uid": "r-1",
        "allowed": False,
        "status": {
            "status": "Failure",
            "code": 422,
            "reason": "Invalid",
            "message": f"spec.scaling.maxReplicas: {problem}",
            "details": {
                "group": "kvasir.dev",
                "kind": "InferenceService",
                "name": "tiny",
                "causes": [{"reason": "FieldValueInvalid", "field": "spec.scaling.maxReplicas", "message": problem}],
            },
        },
    }


async def test_each_problem_has_its_line() -> None:
    api = FakeApi()
    bad = service(scaling={"minReplicas": 4, "maxReplicas": 2}, rollout={"strategy": "Surge", "maxSurge": 0})
    async with webhook(listening(), api) as url:
        _, told = await ask(url, api.bundle, json.dumps(review(bad)).encode())
    lines = told["response"]["status"]["message"].splitlines()
    assert [line.partition(":")[0] for line in lines] == ["spec.scaling.maxReplicas", "spec.rollout.maxSurge"]


async def test_a_sound_service_is_allowed() -> None:
    api = FakeApi()
    async with webhook(listening(), api) as url:
        _, told = await ask(url, api.bundle, json.dumps(review(service())).encode())
    assert told["response"] == {"uid": "r-1", "allowed": True}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"request": {}}', b"\xff"])
async def test_what_is_no_review_gets_a_400(body: bytes) -> None:
    api = FakeApi()
    async with webhook(listening(), api) as url:
        status, told = await ask(url, api.bundle, body)
    assert status == 400
    assert "no AdmissionReview" in told


async def test_a_review_as_large_as_two_objects_is_read() -> None:
    """Two objects of 1.5 MiB, which is what etcd takes."""
    api = FakeApi()
    large = service(engine={"env": [{"name": "PADDING", "value": "x" * 1_500_000}]})
    async with webhook(listening(), api) as url:
        status, told = await ask(url, api.bundle, json.dumps(review(large, relabelled(large))).encode())
    assert (status, told["response"]["allowed"]) == (200, True)


async def test_renewed_certificates_are_served_without_a_restart() -> None:
    """New connections get the new certificate; who trusts the old authority alone turns away."""
    api, settings, context = FakeApi(), listening(), make_context()
    keeper = CertificateKeeper(api.cluster, "kvasir-system", context, lambda: datetime.now(UTC))
    body, url = json.dumps(review(service())).encode(), f"https://127.0.0.1:{settings.webhook_port}/validate"
    async with listen(settings, context):
        await keeper.turn()
        old = api.bundle
        assert (await ask(url, old, body))[0] == 200
        api.secret = None
        await keeper.turn()
        assert (await ask(url, api.bundle, body))[0] == 200
        await keeper.turn()
        assert (await ask(url, api.bundle, body))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask(url, old, body)


async def test_without_certificates_the_operator_runs_all_the_same() -> None:
    """The port answers no handshake until the API server has let the certificates be made."""
    api = FakeApi()
    api.configurations = {}
    async with webhook(listening(), api) as url:
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(url, api.certificates.bundle, b"")


async def test_off_means_no_port_and_no_write() -> None:
    api = FakeApi()
    async with serve(Settings(), api.cluster, lambda: datetime.now(UTC)):
        assert api.writes == []
        assert api.secret is None


def test_the_app_answers_two_paths() -> None:
    routes = [
        (route.method, route.resource and route.resource.canonical) for route in make_app(Settings()).router.routes()
    ]
    assert routes == [("POST", "/mutate"), ("POST", "/validate")]


# --- Defaults


async def mutated(posted: Manifest, settings: Settings | None = None) -> Any:
    """What the API server is answered, and the patch in it."""
    api = FakeApi()
    async with webhook(settings or listening(), api) as url:
        status, told = await ask(url.replace("/validate", "/mutate"), api.bundle, json.dumps(posted).encode())
    assert (status, told["response"]["uid"], told["response"]["allowed"]) == (200, "r-1", True)
    assert told["response"].get("patchType", "JSONPatch") == "JSONPatch"
    return json.loads(base64.b64decode(told["response"].get("patch", "bnVsbA==")))


async def test_defaults_are_answered_as_a_json_patch() -> None:
    assert await mutated(review(service())) == [{"op": "add", "path": "/spec/model/servedName", "value": "tiny"}]


NAMED = service(model={"source": {"uri": "pvc://models/m"}, "servedName": "tiny"})


@pytest.mark.parametrize(
    ("posted", "settings"),
    [
        (review(NAMED), {}),
        (review(service(replicas=-1)), {}),
        (review(relabelled(service()), service()), {}),
        (review(leaving(service()), NAMED), {}),
        (review(None, NAMED), {}),
        (review(service()), {"namespaces": ["other"]}),
    ],
    ids=["complete", "unreadable", "spec as it is", "being deleted", "deleted", "of another namespace"],
)
async def test_where_there_is_nothing_to_write(posted: Manifest, settings: dict[str, Any]) -> None:
    """The answer has no patch; what is wrong is the other webhook's to say."""
    assert await mutated(posted, listening(**settings)) is None


async def test_a_bad_body_gets_a_400_there_too() -> None:
    api = FakeApi()
    async with webhook(listening(), api) as url:
        status, _ = await ask(url.replace("/validate", "/mutate"), api.bundle, b"{}")
    assert status == 400
