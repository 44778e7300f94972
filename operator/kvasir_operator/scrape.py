"""What is said to and heard from the engines: the operator port of a pod, by its address, with the service's token."""

from typing import Any, Final

import aiohttp
from pydantic import BaseModel, ValidationError

from kvasir_operator import metrics
from kvasir_operator.errors import PodError
from kvasir_operator.planning.goldens import Scored
from kvasir_operator.planning.state import Unknown
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import (
    AdapterReports,
    AdapterSet,
    AdminState,
    DrainRequest,
    PrefixList,
    WarmupRequest,
    WarmupState,
)

SCORE_SECONDS: Final = 60.0
"""Time in which a pod must have computed a golden prompt, whatever else it does."""

PREFIXES_SECONDS: Final = 15.0
"""Time in which a pod must have told its prefixes: up to a million token ids, some megabytes."""
WARMUP_GRACE_SECONDS: Final = 4.0
"""What an engine has beyond a warmup's own time to answer."""


class _Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]


class _Choice(BaseModel):
    logprobs: _Logprobs


class _Usage(BaseModel):
    prompt_tokens: int


class _Completion(BaseModel):
    """What is read of the answer of `/v1/completions`."""

    choices: list[_Choice]
    usage: _Usage


class Scraper:
    """Calls to operator ports. One session for all pods; connections are reused."""

    def __init__(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def state(self, ip: str, token: str) -> AdminState | Unknown:
        """What the engine says of itself; Unknown, with the reason, when it cannot be had. Never raises."""
        try:
            state = AdminState.model_validate_json(await self._request("GET", ip, "/admin/state", token))
        except (PodError, ValidationError) as error:
            metrics.SCRAPES.labels("unknown").inc()
            return Unknown(str(error), error.status if isinstance(error, PodError) else 0)
        metrics.SCRAPES.labels("ok").inc()
        return state

    async def drain(self, ip: str, token: str, timeout_s: float) -> None:
        """Have the engine take no more requests; raises PodError."""
        await self._request("POST", ip, "/admin/drain", token, DrainRequest(timeout_s=timeout_s))

    async def undrain(self, ip: str, token: str) -> None:
        """Have the engine take requests again; raises PodError."""
        await self._request("POST", ip, "/admin/undrain", token)

    async def adapters(self, ip: str, token: str) -> AdapterReports | Unknown:
        """How the engine's adapters fare; Unknown, with the reason, when that cannot be had. Never raises."""
        try:
            return AdapterReports.model_validate_json(await self._request("GET", ip, "/admin/adapters", token))
        except (PodError, ValidationError) as error:
            return Unknown(str(error), error.status if isinstance(error, PodError) else 0)

    async def tell_adapters(self, ip: str, token: str, wanted: AdapterSet) -> None:
        """Have the engine serve these adapters; returns before they are loaded. Raises PodError."""
        await self._request("PUT", ip, "/admin/adapters", token, wanted)

    async def prefixes(self, ip: str, token: str, count: int, max_tokens: int, *, salted: bool) -> PrefixList:
        """The prefixes that the engine is asked for most; raises PodError."""
        path = f"/admin/prefixes?count={count}&max_tokens={max_tokens}&salted={str(salted).lower()}"
        limit = aiohttp.ClientTimeout(total=PREFIXES_SECONDS)
        content = await self._send("GET", ip, names.ADMIN_PORT, path, token, limit, None)
        try:
            return PrefixList.model_validate_json(content)
        except ValidationError as error:
            raise PodError(0, f"/admin/prefixes: {error}") from error

    async def warm_up(self, ip: str, token: str, request: WarmupRequest) -> WarmupState:
        """Have the engine compute prompts; returns when they are, or its time is over. Raises PodError."""
        limit = aiohttp.ClientTimeout(total=request.timeout_s + WARMUP_GRACE_SECONDS)
        body = request.model_dump(exclude_none=True)
        content = await self._send("POST", ip, names.ADMIN_PORT, "/admin/warmup", token, limit, body)
        try:
            return WarmupState.model_validate_json(content)
        except ValidationError as error:
            raise PodError(0, f"/admin/warmup: {error}") from error

    async def score(self, ip: str, token: str, model: str, prompt: str) -> Scored:
        """The log-probabilities of a prompt's tokens, by the user port, which takes our token too; raises PodError."""
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 0}
        limit = aiohttp.ClientTimeout(total=SCORE_SECONDS)
        content = await self._send("POST", ip, names.USER_PORT, "/v1/completions", token, limit, body)
        try:
            answer = _Completion.model_validate_json(content)
            found = answer.choices[0].logprobs
        except (ValidationError, IndexError) as error:
            raise PodError(0, f"/v1/completions: no log-probabilities in the answer: {error}") from error
        count = answer.usage.prompt_tokens
        return Scored(tuple(found.tokens[:count]), tuple(found.token_logprobs[:count]))

    async def _request(self, method: str, ip: str, path: str, token: str, body: BaseModel | None = None) -> bytes:
        sent = body.model_dump() if body is not None else None
        return await self._send(method, ip, names.ADMIN_PORT, path, token, self._timeout, sent)

    async def _send(
        self,
        method: str,
        ip: str,
        port: int,
        path: str,
        token: str,
        limit: aiohttp.ClientTimeout,
        body: dict[str, Any] | None,
    ) -> bytes:
        host = f"[{ip}]" if ":" in ip else ip
        sent: dict[str, Any] = {"json": body} if body is not None else {}
        try:
            async with self._session.request(
                method,
                f"http://{host}:{port}{path}",
                headers={"Authorization": f"Bearer {token}"},
                timeout=limit,
                **sent,
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PodError(0, f"{path}: {str(error) or type(error).__name__}") from error
        if answer.status >= 400:
            raise PodError(answer.status, f"{path}: HTTP {answer.status} {content[:200].decode(errors='replace')}")
        return content
