"""The admission webhook: what the operator has to say before the API server stores an InferenceService.

First `/mutate` writes down what follows from other fields (`api/defaults.py`), then `/validate` checks. Both find what
the control loop would find and nothing else, so that they are no loss where they are not installed or do not answer:
the same is then derived, and the same lines are in the service's conditions. Every replica of the operator answers,
leader or not.

| request | `/mutate` | `/validate` |
|---|---|---|
| a new service, or one whose spec changes | sets defaults | refuses with a line for each problem, else allows |
| a change that leaves the spec as it is | does nothing | allows: it makes nothing worse |
| a change of a service that is being deleted | does nothing | likewise |
| a service in a namespace that this operator does not look after | does nothing | allows: its settings do not count |
"""

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from kvasir_operator import metrics
from kvasir_operator.api.defaults import Operation, complete
from kvasir_operator.api.field_errors import FieldError
from kvasir_operator.api.v1alpha1 import GROUP, KIND
from kvasir_operator.cluster import Cluster
from kvasir_operator.observe import read_desired
from kvasir_operator.settings import Settings
from kvasir_operator.tasks import cancel
from kvasir_operator.webhook_certificates import CertificateKeeper

log = logging.getLogger(__name__)

VALIDATE: Final = "/validate"
MUTATE: Final = "/mutate"
LONGEST_REVIEW: Final = 8 * 1024**2
"""Bytes. A review holds the object before and after a change, of which etcd takes 1.5 MiB each."""
GRACE_SECONDS: Final = 2.0
"""Time in which requests that came before the end are answered."""


class AdmissionRequest(BaseModel):
    """The part of `admission.k8s.io/v1` AdmissionRequest that an answer depends on."""

    uid: str
    operation: str
    namespace: str = ""
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = Field(default=None, alias="oldObject")


class AdmissionReview(BaseModel):
    """What the API server posts."""

    request: AdmissionRequest


def find_problems(request: AdmissionRequest, settings: Settings) -> tuple[FieldError, ...]:
    """What speaks against the request; by the table above."""
    if request.object is None or not concerns_us(request, settings):
        return ()
    desired = read_desired(request.object, settings)
    return desired.errors + desired.source_errors


def find_defaults(request: AdmissionRequest, settings: Settings) -> list[Operation]:
    """What is to be written into the object, as a JSON patch; by the table above."""
    if request.object is None or not concerns_us(request, settings):
        return []
    return complete(request.object, request.old_object)


def concerns_us(request: AdmissionRequest, settings: Settings) -> bool:
    """Whether the request brings a spec that this operator will act on."""
    wanted, before = request.object, request.old_object
    if wanted is None or (settings.namespaces and request.namespace not in settings.namespaces):
        return False
    if wanted.get("metadata", {}).get("deletionTimestamp"):
        return False
    return before is None or before.get("spec") != wanted.get("spec")


def answer(request: AdmissionRequest, problems: tuple[FieldError, ...]) -> dict[str, Any]:
    """An AdmissionReview for the API server, in the form in which it tells itself of what the schema refuses."""
    response: dict[str, Any] = {"allowed": not problems}
    if problems:
        causes = [{"reason": "FieldValueInvalid", "field": each.path, "message": each.problem} for each in problems]
        response["status"] = {
            "status": "Failure",
            "code": 422,
            "reason": "Invalid",
            "message": "\n".join(map(str, problems)),
            "details": {"group": GROUP, "kind": KIND, "name": _name(request), "causes": causes},
        }
    return _review(request, response)


def answer_with(request: AdmissionRequest, patch: list[Operation]) -> dict[str, Any]:
    """An AdmissionReview that allows the object, with the patch; a patch that is empty is left out."""
    response: dict[str, Any] = {"allowed": True}
    if patch:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
    return _review(request, response)


def _review(request: AdmissionRequest, response: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": request.uid, **response},
    }


def make_app(settings: Settings) -> web.Application:
    """Reviews on `/mutate` and `/validate`: 400 for a body that is none."""

    async def mutate(request: web.Request) -> web.Response:
        asked = await _read(request)
        patch = find_defaults(asked, settings)
        metrics.ADMISSIONS.labels("defaulted" if patch else "complete").inc()
        return web.json_response(answer_with(asked, patch))

    async def validate(request: web.Request) -> web.Response:
        asked = await _read(request)
        problems = find_problems(asked, settings)
        metrics.ADMISSIONS.labels("refused" if problems else "allowed").inc()
        if problems:
            text = "; ".join(map(str, problems))
            log.info("refused %s of %s/%s: %s", asked.operation, asked.namespace, _name(asked), text)
        return web.json_response(answer(asked, problems))

    app = web.Application(client_max_size=LONGEST_REVIEW)
    app.add_routes([web.post(MUTATE, mutate), web.post(VALIDATE, validate)])
    return app


async def _read(request: web.Request) -> AdmissionRequest:
    try:
        return AdmissionReview.model_validate_json(await request.read()).request
    except ValidationError as error:
        metrics.ADMISSIONS.labels("unreadable").inc()
        raise web.HTTPBadRequest(text=f"no AdmissionReview: {error}") from error


def _name(request: AdmissionRequest) -> str:
    metadata: Mapping[str, Any] = (request.object or {}).get("metadata", {})
    return str(metadata.get("name", ""))


@asynccontextmanager
async def serve(settings: Settings, cluster: Cluster, clock: Callable[[], datetime]) -> AsyncIterator[None]:
    """Answer on the webhook's port, if the settings say so, with certificates that keep themselves.

    Raises OSError when the port is taken. Certificates that cannot be had yet are tried again beside the caller.
    """
    if not settings.webhook:
        yield
        return
    context = make_context()
    keeper = CertificateKeeper(cluster, settings.namespace, context, clock)
    async with listen(settings, context):
        await keeper.guarded_turn()  # so that a replica that is ready can be asked
        keeping = asyncio.create_task(keeper.keep(), name="webhook certificates")
        try:
            yield
        finally:
            await cancel(keeping)


def make_context() -> ssl.SSLContext:
    """TLS for the server; it refuses every handshake until it is given certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@asynccontextmanager
async def listen(settings: Settings, context: ssl.SSLContext) -> AsyncIterator[None]:
    """Answer reviews; raises OSError when the port is taken."""
    runner = web.AppRunner(make_app(settings), access_log=None, shutdown_timeout=GRACE_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=settings.webhook_port, ssl_context=context, reuse_address=True).start()
        yield
    finally:
        await runner.cleanup()
