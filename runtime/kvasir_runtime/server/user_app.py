"""The user port: OpenAI's API and what stands around it. Endpoints only; each works in its own module."""

import time
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from kvasir_runtime.edge.gates import UserGate
from kvasir_runtime.fetch.uri import without_credentials
from kvasir_runtime.server.adapter_endpoints import (
    LoadLoRAAdapterRequest,
    UnloadLoRAAdapterRequest,
    load_lora_adapter,
    unload_lora_adapter,
)
from kvasir_runtime.server.adapters import Adapter
from kvasir_runtime.server.chat import create_chat_completion
from kvasir_runtime.server.completions import create_completion
from kvasir_runtime.server.conversation import render
from kvasir_runtime.server.errors import ErrorResponse, bad_request, install_handlers
from kvasir_runtime.server.logprobs import token_text
from kvasir_runtime.server.middleware import RequestScope
from kvasir_runtime.server.protocol import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from kvasir_runtime.server.replies import (
    ChatCompletionReply,
    CompletionReply,
    DetokenizeReply,
    ModelCard,
    ModelList,
    TokenizeReply,
    VersionReply,
)
from kvasir_runtime.server.service import Service, encode
from kvasir_runtime.server.tools.use import tool_format
from kvasir_runtime.version import version

_ERRORS: dict[int | str, dict[str, object]] = {
    400: {"model": ErrorResponse, "description": "a field is out of bounds, or not supported"},
    401: {"model": ErrorResponse, "description": "no valid API key"},
    404: {"model": ErrorResponse, "description": "no such model"},
    413: {"model": ErrorResponse, "description": "the body is too large"},
    429: {"model": ErrorResponse, "description": "the queue is full; Retry-After says when to come back"},
    500: {"model": ErrorResponse, "description": "the engine ended"},
    503: {"model": ErrorResponse, "description": "loading or draining; Retry-After says when to come back"},
}
_EVENTS: dict[str, object] = {"text/event-stream": {}}

DOCS_PAGE: Final = Path(__file__).parent / "docs.html"
"""Self-contained: clusters without the internet have no other."""


def build_user_app(service: Service) -> ASGIApp:
    """The ASGI application of the user port."""
    app = FastAPI(
        title="Kvasir", version=version(), description="LLM runtime with OpenAI's API.", redoc_url=None, docs_url=None
    )
    install_handlers(app)
    _add_docs(app)
    _add_generation(app, service)
    _add_models(app, service)
    _add_adapters(app, service)
    _add_tokenizer(app, service)
    _add_state(app, service)
    gate = UserGate(service.api_keys, service.args.max_streams_per_key, service.admin_tokens)

    def count(failed: bool) -> None:
        service.rates.answered(time.monotonic(), failed=failed)

    return RequestScope(app, gate, lambda: service.lifecycle.draining, count)


def _add_docs(app: FastAPI) -> None:
    page = DOCS_PAGE.read_bytes()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page)


def _add_generation(app: FastAPI, service: Service) -> None:
    # The replies are made as bytes; the models are named for the served document.
    @app.post(
        "/v1/completions",
        response_model=None,
        responses={200: {"model": CompletionReply, "content": _EVENTS}, **_ERRORS},
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await create_completion(service, body, request)

    @app.post(
        "/v1/chat/completions",
        response_model=None,
        responses={200: {"model": ChatCompletionReply, "content": _EVENTS}, **_ERRORS},
    )
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        return await create_chat_completion(service, body, request)

    @app.post("/v1/embeddings", response_model=None, responses=_ERRORS)
    async def embeddings() -> Response:
        msg = (
            f"{service.model_names[0]} generates text and has no embeddings; "
            "supported are /v1/completions and /v1/chat/completions"
        )
        raise bad_request(msg, "model", code="embeddings_not_supported")


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> ModelList:
        cards = [_card(service, name) for name in service.model_names]
        served = [adapter for adapter in service.adapters.adapters.values() if adapter.serving]
        return ModelList(object="list", data=[*cards, *(_adapter_card(service, adapter) for adapter in served)])

    @app.get("/v1/models/{model:path}", responses=_ERRORS)
    async def model(model: str) -> ModelCard:
        name = service.check_model(model)
        adapter = service.adapters.adapters.get(name)
        return _card(service, name) if adapter is None else _adapter_card(service, adapter)


def _add_adapters(app: FastAPI, service: Service) -> None:
    @app.post("/v1/load_lora_adapter", response_class=PlainTextResponse, responses=_ERRORS)
    async def load(body: LoadLoRAAdapterRequest) -> Response:
        return await load_lora_adapter(service, body)

    @app.post("/v1/unload_lora_adapter", response_class=PlainTextResponse, responses=_ERRORS)
    async def unload(body: UnloadLoRAAdapterRequest) -> Response:
        return unload_lora_adapter(service, body)


def _add_tokenizer(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", response_model_exclude_unset=True, responses=_ERRORS)
    async def tokenize(body: TokenizeRequest) -> TokenizeReply:
        tokenizer, ready = service.loaded()
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("exactly one of prompt and messages must be given", "prompt", code="invalid_value")
        text = body.prompt if body.prompt is not None else ""
        if body.messages is not None:
            text = render(
                tokenizer,
                body.messages,
                add_generation_prompt=body.add_generation_prompt,
                continue_final_message=body.continue_final_message,
                variables=body.chat_template_kwargs,
                tools=body.tools,
                tool_format=tool_format(tokenizer, service.args.tool_call_parser) if body.tools else None,
            )
        special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
        ids = await encode(tokenizer, text, add_special_tokens=special)
        reply = TokenizeReply(count=len(ids), max_model_len=ready.max_model_len, tokens=ids)
        if body.return_token_strs:
            reply.token_strs = [token_text(tokenizer, token_id) for token_id in ids]
        return reply

    @app.post("/detokenize", responses=_ERRORS)
    async def detokenize(body: DetokenizeRequest) -> DetokenizeReply:
        tokenizer, _ = service.loaded()
        service.check_model(body.model)
        largest = max(body.tokens, default=0)
        if largest >= tokenizer.vocab_size:
            raise bad_request(
                f"tokens must be below {tokenizer.vocab_size}, got {largest}", "tokens", code="invalid_value"
            )
        return DetokenizeReply(prompt=tokenizer.decode(body.tokens, skip_special_tokens=False))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_class=PlainTextResponse, responses={503: _ERRORS[503]})
    async def health() -> str:
        service.loaded()
        service.take_no_work_while_stopping()
        return ""

    @app.get("/version")
    async def show_version() -> VersionReply:
        return VersionReply(version=version())

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _adapter_card(service: Service, adapter: Adapter) -> ModelCard:
    card = _card(service, adapter.wanted.name)
    uri, parent = without_credentials(adapter.wanted.uri), service.model_names[0]
    return card.model_copy(update={"created": adapter.created, "root": uri, "parent": parent})


def _card(service: Service, name: str) -> ModelCard:
    return ModelCard(
        id=name,
        object="model",
        created=service.started_at,
        owned_by="kvasir",
        root=service.args.model,
        parent=None,
        max_model_len=service.ready.max_model_len if service.ready else None,
    )
