"""The API server as client and kubelet's double use it: JSON over a pool of connections, lists that become watches."""

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

Object = dict[str, Any]

STRATEGIC_PATCH = "application/strategic-merge-patch+json"
LINE_LIMIT = 1 << 22
"""Bytes of one watch event: an object of etcd has 1.5 MiB at most."""
WATCH_SECONDS = 300


class ApiFailureError(Exception):
    """The API server refused a request; the text holds its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class BenchApi:
    """JSON requests with the client certificate of a kubeconfig. Use `opened`."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    @classmethod
    @asynccontextmanager
    async def opened(cls, kubeconfig: Path, connections: int = 32) -> AsyncIterator[Self]:
        """A client for the first context of the kubeconfig that `e2e.cluster up` writes."""
        context, server = _credentials(kubeconfig)
        connector = aiohttp.TCPConnector(limit=connections, ssl=context)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=LINE_LIMIT) as session:
            yield cls(session, server)

    async def request(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Any:
        """The answer's content; raises ApiFailureError for any status from 400 on."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": kind}
        async with self._session.request(method, self._server + path, data=data, headers=headers) as answer:
            content = await answer.read()
        if answer.status >= 400:
            raise ApiFailureError(answer.status, content[:300].decode(errors="replace"))
        return json.loads(content)

    async def follow(self, path: str, selector: str = "") -> AsyncIterator[tuple[str, Object]]:
        """Every object of a collection as ADDED, then its changes, for ever; begins anew when a watch ends."""
        query = {"labelSelector": selector} if selector else {}
        while True:
            listed = await self._list(path, query)
            for item in listed["items"]:
                yield "ADDED", item
            version = listed["metadata"]["resourceVersion"]
            async for change, item in self._watch(path, query | {"resourceVersion": version}):
                yield change, item

    async def _list(self, path: str, query: dict[str, str]) -> Any:
        async with self._session.get(self._server + path, params=query) as answer:
            answer.raise_for_status()
            return json.loads(await answer.read())

    async def _watch(self, path: str, query: dict[str, str]) -> AsyncIterator[tuple[str, Object]]:
        given = query | {"watch": "1", "timeoutSeconds": str(WATCH_SECONDS), "allowWatchBookmarks": "false"}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(self._server + path, params=given, timeout=timeout) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":  # the version is too old: list anew
                    return
                yield event["type"], event["object"]
        await asyncio.sleep(0)


def _credentials(kubeconfig: Path) -> tuple[ssl.SSLContext, str]:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    with tempfile.NamedTemporaryFile() as pair:
        pair.write(base64.b64decode(user["client-certificate-data"]))
        pair.write(base64.b64decode(user["client-key-data"]))
        pair.flush()
        context.load_cert_chain(pair.name)
    return context, str(cluster["server"])
