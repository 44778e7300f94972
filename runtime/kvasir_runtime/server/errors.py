"""Errors in OpenAI's shape, and how whatever goes wrong becomes one.

Source: https://platform.openai.com/docs/guides/error-codes/api-errors
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from kvasir_runtime.engine.async_engine import EngineGoneError, RequestEndedError
from kvasir_runtime.validation import explain

logger = logging.getLogger("kvasir.server")


class ErrorDetail(BaseModel):
    """`param` is the path of the offending field, `code` a stable word for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorDetail


class ApiError(Exception):
    """An error meant for the client, with its HTTP status."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorResponse(error=ErrorDetail(message=message, type=_error_type(status), param=param, code=code))
        self.headers = {} if retry_after_s is None else {"Retry-After": str(max(1, round(retry_after_s)))}

    def to_response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), status_code=self.status, headers=self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def unavailable(message: str, code: str, retry_after_s: float) -> ApiError:
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code=code, retry_after_s=retry_after_s)


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
    async def on_any(_: Request, error: Exception) -> JSONResponse:
        return from_exception(error).to_response()

    for kind in (ApiError, EngineGoneError, RequestEndedError):
        app.add_exception_handler(kind, on_any)


def _error_type(status: HTTPStatus) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


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
