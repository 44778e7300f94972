"""How whatever goes wrong becomes an error in OpenAI's shape."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kvasir_runtime.edge.errors import ApiError, ErrorDetail, ErrorResponse, bad_request, unavailable
from kvasir_runtime.engine.async_engine import EngineGoneError, RequestEndedError
from kvasir_runtime.server.outcomes import note_failure
from kvasir_runtime.validation import explain

__all__ = [
    "ApiError",
    "ErrorDetail",
    "ErrorResponse",
    "bad_request",
    "from_exception",
    "from_validation",
    "install_handlers",
    "unavailable",
]

logger = logging.getLogger("kvasir.server")


def from_exception(error: Exception) -> ApiError:
    """The error to show for an exception; what nobody expected is logged and shown without its inside."""
    match error:
        case ApiError():
            return error
        case EngineGoneError():
            return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, f"the engine ended: {error}", code="engine_died")
        case RequestEndedError():
            return unavailable(str(error), error.code, retry_after_s=1)
        case _:
            logger.error("unexpected error while answering", exc_info=error)
            return ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the server's log", code="internal_error"
            )


def from_validation(details: Sequence[Mapping[str, Any]]) -> ApiError:
    """One sentence for each field that was refused: path, bound and value."""
    reasons: dict[str, list[str]] = {}
    for detail in details:
        path, value = _path(detail["loc"]), detail.get("input")
        if detail["type"] == "json_invalid":
            path, value = "the body", detail["ctx"]["error"]
        reasons.setdefault(path, []).append(explain(detail["type"], detail["msg"], value))
    sentences = [f"{path} {_either(texts)}".strip() for path, texts in reasons.items()]
    return bad_request(
        "; ".join(sentences), param=next((path for path in reasons if path != "the body"), None), code="invalid_value"
    )


def install_handlers(app: FastAPI) -> None:
    """Let every error of `app` leave in OpenAI's shape."""

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error.errors()).to_response()

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> JSONResponse:
        answer = ApiError(HTTPStatus(error.status_code), str(error.detail)).to_response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def on_any(request: Request, error: Exception) -> JSONResponse:
        shown = from_exception(error)
        note_failure(request.scope, shown)
        return shown.to_response()

    for kind in (ApiError, EngineGoneError, RequestEndedError):
        app.add_exception_handler(kind, on_any)


def _path(location: Sequence[str | int]) -> str:
    """`("body", "messages", 0, "role")` → `messages[0].role`."""
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path or "the body"


def _either(texts: Sequence[str]) -> str:
    return ", or ".join(dict.fromkeys(texts))
