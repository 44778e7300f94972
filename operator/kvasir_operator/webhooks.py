"""The admission webhook: the operator's checks, asked by the API server before an InferenceService is stored.

It finds what the control loop would find and nothing else, so that it is no loss where it is not installed or does
not answer: the same lines are then in the service's conditions. Every replica of the operator answers, leader or not.

| request | answer |
|---|---|
| a new service, or one whose spec changes | refused with a line for each problem, else allowed |
| a change that leaves the spec as it is, or of a service that is being deleted | allowed: it makes nothing worse |
| a service in a namespace that this operator does not look after | allowed: its settings do not count there |
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from kvasir_operator import metrics
from kvasir_operator.api.field_errors import FieldError
from kvasir_operator.api.v1alpha1 import GROUP, KIND
from kvasir_operator.cluster import Cluster
from kvasir_operator.observe import read_desired
from kvasir_operator.settings import Settings
from kvasir_operator.tasks import cancel
from kvasir_operator.webhook_certificates import CertificateKeeper

log = logging.getLogger(__name__)

PATH: Final = "/validate"
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
    wanted, before = request.object, request.old_object
    if wanted is None or (settings.namespaces and request.namespace not in settings.namespaces):
        return ()
    if wanted.get("metadata", {}).get("deletionTimestamp"):
        return ()
    if before is not None and before.get("spec") == wanted.get("spec"):
        return ()
    desired = read_desired(wanted, settings)
    return desired.errors + desired.source_errors


def answer(request: AdmissionRequest, problems: tuple[FieldError, ...]) -> dict[str, Any]:
    """An AdmissionReview for the API server, in the form in which it tells itself of what the schema refuses."""
    response: dict[str, Any] = {"uid": request.uid, "allowed": not problems}
    if problems:
        causes = [{"reason": "FieldValueInvalid", "field": each.path, "message": each.problem} for each in problems]
        response["status"] = {
            "status": "Failure",
            "code": 422,
            "reason": "Invalid",
            "message": "\n".join(map(str, problems)),
            "details": {"group": GROUP, "kind": KIND, "name": _name(request), "causes": causes},
        }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def make_app(settings: Settings) -> web.Application:
    """Reviews on `/validate`: 400 for a body that is none."""

    async def validate(request: web.Request) -> web.Response:
        try:
            asked = AdmissionReview.model_validate_json(await request.read()).request
        except ValidationError as error:
            metrics.ADMISSIONS.labels("unreadable").inc()
            return web.Response(status=400, text=f"no AdmissionReview: {error}")
        problems = find_problems(asked, settings)
        metrics.ADMISSIONS.labels("refused" if problems else "allowed").inc()
        if problems:
            text = "; ".join(map(str, problems))
            log.info("refused %s of %s/%s: %s", asked.operation, asked.namespace, _name(asked), text)
        return web.json_response(answer(asked, problems))

    app = web.Application(client_max_size=LONGEST_REVIEW)
    app.add_routes([web.post(PATH, validate)])
    return app


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
