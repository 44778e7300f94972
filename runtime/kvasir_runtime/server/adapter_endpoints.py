"""vLLM's endpoints that load and unload one adapter, with its shapes and its words, for tools that were made for it.

Source: https://docs.vllm.ai/en/latest/features/lora.html#dynamically-serving-lora-adapters
"""

import asyncio
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import JSONResponse, PlainTextResponse, Response

from kvasir_runtime.contract.admin_api import WantedAdapter
from kvasir_runtime.contract.failures import Cause, FailureReport
from kvasir_runtime.server.service import Service
from kvasir_runtime.validation import explain


class LoadLoRAAdapterRequest(BaseModel):
    """`POST /v1/load_lora_adapter`. `lora_path` is a path or URI that this server may load adapters from."""

    model_config = ConfigDict(extra="ignore")

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadLoRAAdapterRequest(BaseModel):
    """`POST /v1/unload_lora_adapter`."""

    model_config = ConfigDict(extra="ignore")

    lora_name: str
    lora_int_id: int | None = None


async def load_lora_adapter(service: Service, body: LoadLoRAAdapterRequest) -> Response:
    """Load one adapter beside the others and answer when it is there, or why it cannot be."""
    refusal = _refuse_load(service, body)
    if refusal is not None:
        return refusal
    try:
        wanted = WantedAdapter(name=body.lora_name, uri=body.lora_path)
    except ValidationError as error:
        detail = error.errors()[0]
        field = "lora_name" if detail["loc"] == ("name",) else "lora_path"
        return _error(f"{field} {explain(detail['type'], detail['msg'], detail['input'])}", "BadRequestError")
    adapter = service.adapters.put(wanted)
    if body.load_inplace and adapter.loading is None:
        service.adapters.reload(adapter)
    if adapter.loading is not None:
        await asyncio.wait([adapter.loading])
    if adapter.failure is not None:
        if not adapter.serving and service.adapters.adapters.get(body.lora_name) is adapter:
            service.adapters.remove(body.lora_name)  # as in vLLM: what could not be loaded is not there
        return _failed(body, adapter.failure)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


def unload_lora_adapter(service: Service, body: UnloadLoRAAdapterRequest) -> Response:
    """Take an adapter from new requests; those that run with it go on."""
    if not service.runtime_lora_updating:
        return _switched_off()
    if not body.lora_name:
        return _error("'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput")
    if body.lora_name not in service.adapters.adapters:
        msg = f"The lora adapter '{body.lora_name}' cannot be found."
        return _error(msg, "NotFoundError", HTTPStatus.NOT_FOUND)
    service.adapters.remove(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _refuse_load(service: Service, body: LoadLoRAAdapterRequest) -> Response | None:
    if not service.runtime_lora_updating:
        return _switched_off()
    if not body.lora_name or not body.lora_path:
        return _error("Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
    if body.lora_name in service.model_names:
        msg = f"The lora adapter '{body.lora_name}' conflicts with a served base model."
        return _error(msg, "InvalidUserInput")
    if body.lora_name in service.adapters.adapters and not body.load_inplace:
        msg = (
            f"The lora adapter '{body.lora_name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True."
        )
        return _error(msg, "InvalidUserInput")
    return None


def _failed(body: LoadLoRAAdapterRequest, failure: FailureReport) -> Response:
    if failure.message.startswith("No adapter found for "):
        msg = f"Loading lora {body.lora_name} failed: No adapter found for {body.lora_path}"
        return _error(msg, "NotFoundError", HTTPStatus.NOT_FOUND)
    status = HTTPStatus.INTERNAL_SERVER_ERROR if failure.cause is Cause.ENGINE_DIED else HTTPStatus.BAD_REQUEST
    remedy = f" ({failure.remedy})" if failure.remedy else ""
    return _error(failure.message + remedy, "BadRequestError", status)


def _switched_off() -> Response:
    msg = "loading adapters here is off: start with --enable-lora --allow-runtime-lora-updating"
    return _error(msg, "NotFoundError", HTTPStatus.NOT_FOUND)


def _error(message: str, kind: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> Response:
    """VLLM's error: its `code` is the status."""
    error = {"message": message, "type": kind, "param": None, "code": int(status)}
    return JSONResponse({"error": error}, status_code=status)
