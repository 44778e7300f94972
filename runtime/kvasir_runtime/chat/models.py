"""What a chat talks to: a model in this process, or a server's. Both give a reply piece by piece."""

import itertools
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from kvasir_runtime.contract.failures import Cause, KvasirError

TIMEOUT_S: Final = 300.0
"""Longest silence of a server: a long prompt may take minutes until its first token."""

Messages = list[dict[str, str]]


class ChatError(Exception):
    """This reply failed; the chat goes on. The message is meant for the user."""


class ChatModel(Protocol):
    """`name` is shown in the greeting; `reply` raises ChatError."""

    name: str

    def reply(self, messages: Messages) -> Iterator[str]: ...


@dataclass
class Options:
    """How replies are made; None leaves it to the model."""

    max_tokens: int | None = None
    temperature: float | None = None


class RemoteModel:
    """A server's chat completions, streamed with the standard library's HTTP client."""

    def __init__(self, url: str, model: str | None, api_key: str | None, options: Options) -> None:
        """Ask the server what it serves; raises KvasirError when it cannot be reached or does not serve `model`."""
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        self._secure, self._address = parts.scheme == "https", parts.netloc
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._options = {name: value for name, value in vars(options).items() if value is not None}
        self.name = self._choose(url, model)

    def reply(self, messages: Messages) -> Iterator[str]:
        body = {"model": self.name, "messages": messages, "stream": True, **self._options}
        try:
            for event in self._events(self._request("POST", "/v1/chat/completions", body)):
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""
        except (OSError, HTTPException, ValueError) as error:
            raise ChatError(f"the server did not answer: {error}") from error

    def _choose(self, url: str, model: str | None) -> str:
        try:
            served = [str(entry["id"]) for entry in json.load(self._request("GET", "/v1/models"))["data"]]
        except (OSError, HTTPException, ValueError, KeyError, ChatError) as error:
            raise KvasirError(Cause.SOURCE_UNREACHABLE, f"cannot talk to {url}: {error}", "check --url") from None
        if model is not None and model not in served:
            msg = f"{url} does not serve {model!r}; it serves {', '.join(served)}"
            raise KvasirError(Cause.INVALID_ARGUMENTS, msg, "choose one with --model")
        return model or served[0]

    def _request(self, method: str, path: str, body: Any = None) -> HTTPResponse:
        connection = (HTTPSConnection if self._secure else HTTPConnection)(self._address, timeout=TIMEOUT_S)
        content = None if body is None else json.dumps(body)
        connection.request(method, self._path + path, content, self._headers)
        response = connection.getresponse()
        if response.status >= 400:
            raise ChatError(_error_message(response))
        return response

    @staticmethod
    def _events(response: HTTPResponse) -> Iterator[Any]:
        with response:
            for line in response:
                data = line.decode().removeprefix("data: ").strip()
                if data and data != "[DONE]":
                    event = json.loads(data)
                    if "error" in event:
                        raise ChatError(event["error"]["message"])
                    yield event


class LocalModel:
    """A model loaded into this process; Ctrl-C ends a reply between two steps."""

    def __init__(self, core: Any, tokenizer: Any, name: str, options: Options) -> None:
        """`core`: a loaded `EngineCore`; `tokenizer`: its `Tokenizer`."""
        self.name = name
        self._core = core
        self._tokenizer = tokenizer
        self._options = options
        self._ids = itertools.count()

    def reply(self, messages: Messages) -> Iterator[str]:
        from kvasir_runtime.engine.detokenizer import Detokenizer  # noqa: PLC0415 - see cli.run
        from kvasir_runtime.engine.messages import EngineRequest  # noqa: PLC0415
        from kvasir_runtime.sampling_params import SamplingParams  # noqa: PLC0415

        try:
            prompt = self._tokenizer.encode(self._tokenizer.render_chat(messages), add_special_tokens=False)
            temperature = 1.0 if self._options.temperature is None else self._options.temperature
            sampling = SamplingParams(max_tokens=self._options.max_tokens, temperature=temperature)
            request = EngineRequest(str(next(self._ids)), prompt, sampling, time.monotonic())
            self._core.add_request(request)
        except ValueError as error:
            raise ChatError(str(error)) from None
        yield from self._run(request.request_id, Detokenizer(self._tokenizer, prompt))

    def _run(self, request_id: str, text: Any) -> Iterator[str]:
        # A KeyboardInterrupt inside a step would leave the scheduler's books half-written.
        interrupted: list[int] = []
        previous = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
        try:
            while self._core.has_work() and not interrupted:
                for output in self._core.step().outputs:
                    ids = output.new_token_ids[: -1 if output.stop_token_id is not None else None]
                    yield text.push(ids) + (text.flush() if output.finish_reason else "")
        finally:
            self._core.abort_requests([request_id])
            signal.signal(signal.SIGINT, previous)
        if interrupted:
            raise KeyboardInterrupt


def _error_message(response: HTTPResponse) -> str:
    content = response.read()
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status}: {content[:200].decode(errors='replace')}"
