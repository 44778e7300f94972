"""What is said to and heard from the engines: the operator port of a pod, by its address, with the service's token."""

from typing import Any

import aiohttp
from pydantic import BaseModel, ValidationError

from kvasir_operator import metrics
from kvasir_operator.errors import PodError
from kvasir_operator.planning.state import Unknown
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdminState, DrainRequest


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

    async def _request(self, method: str, ip: str, path: str, token: str, body: BaseModel | None = None) -> bytes:
        host = f"[{ip}]" if ":" in ip else ip
        sent: dict[str, Any] = {"json": body.model_dump()} if body is not None else {}
        try:
            async with self._session.request(
                method,
                f"http://{host}:{names.ADMIN_PORT}{path}",
                headers={"Authorization": f"Bearer {token}"},
                timeout=self._timeout,
                **sent,
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PodError(0, f"{path}: {str(error) or type(error).__name__}") from error
        if answer.status >= 400:
            raise PodError(answer.status, f"{path}: HTTP {answer.status} {content[:200].decode(errors='replace')}")
        return content
