"""The operator port: probes for everybody, and `/admin` for whoever has the token."""

import logging
from http import HTTPStatus

from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from kvasir_router.configuration import Configuration
from kvasir_router.exchange import header
from kvasir_router.proxy import reply
from kvasir_router.router import Router
from kvasir_runtime.contract.router_api import RouterConfig
from kvasir_runtime.edge.errors import ApiError, bad_request, unavailable
from kvasir_runtime.edge.gates import OperatorGate
from kvasir_runtime.edge.incoming import MAX_BODY_BYTES, body_too_large, check_length
from kvasir_runtime.validation import explain

JSON = b"application/json"

logger = logging.getLogger("kvasir.router")


class OperatorApp:
    """The ASGI application of the operator port."""

    def __init__(self, router: Router, configuration: Configuration, gate: OperatorGate) -> None:
        self._router = router
        self._configuration = configuration
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name: header(scope["headers"], name.encode()) or "" for name in ("authorization", "content-length")}
        try:
            self._gate.enter(scope["path"], headers)
            check_length(headers)
            await self._answer(scope, receive, send)
        except ApiError as refusal:
            await refusal.to_response()(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["method"], scope["path"]:
            case "GET", "/livez":
                await reply(send, b"", b"text/plain")
            case "GET", "/readyz":
                if not self._router.ready:
                    raise unavailable("the router knows no replicas yet, or ends", "not_ready", 1)
                await reply(send, b"", b"text/plain")
            case "GET", "/admin/state":
                await reply(send, self._router.state().model_dump_json().encode(), JSON)
            case "GET", "/admin/config":
                await self._show(send)
            case "PUT", "/admin/config":
                config = parse_config(await _body(receive))
                self._configuration.push(config)
                await reply(send, self._router.state().model_dump_json().encode(), JSON)
            case _, path:
                raise ApiError(HTTPStatus.NOT_FOUND, f"no such path: {path}", code="not_found")

    async def _show(self, send: Send) -> None:
        config = self._router.config
        if config is None:
            raise ApiError(HTTPStatus.NOT_FOUND, "no configuration was given yet", code="no_configuration")
        await reply(send, config.model_dump_json().encode(), JSON)


def parse_config(text: str | bytes) -> RouterConfig:
    """Read a configuration; raises ApiError (400) that names each field, its bound and the value."""
    try:
        return RouterConfig.model_validate_json(text)
    except ValidationError as error:
        details = error.errors(include_url=False)
    lines = [
        f"{'.'.join(map(str, each['loc']))} {explain(each['type'], each['msg'], each['input'])}" for each in details
    ]
    raise bad_request("; ".join(line.strip() for line in lines), code="invalid_value")


async def _body(receive: Receive) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise body_too_large()
        more = message.get("more_body", False)
    return b"".join(parts)
