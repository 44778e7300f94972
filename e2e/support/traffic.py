"""Clients that keep asking while something happens to the cluster."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import openai


@dataclass
class Traffic:
    """What the clients saw: texts that came whole, and what went wrong."""

    texts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def ask_once(client: openai.OpenAI, model: str, prompt: str, max_tokens: int) -> tuple[str, str]:
    """Stream one greedy answer of exactly `max_tokens` tokens: its text, and what was wrong with it or ""."""
    text, count, finish = "", 0, ""
    try:
        stream = client.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        for choice in (choice for chunk in stream for choice in chunk.choices):
            text += choice.text
            # The client's types know of no choice without a reason; streams have them.
            finish = cast("str | None", choice.finish_reason) or finish
            count += len((choice.model_extra or {}).get("token_ids") or [])
    except openai.OpenAIError as error:
        return text, f"{type(error).__name__}: {error}"
    if (finish, count) != ("length", max_tokens):
        return text, f"cut short: {count} of {max_tokens} tokens, finish reason {finish!r}"
    return text, ""


@contextmanager
def steady(
    base: str, model: str, clients: int = 4, max_tokens: int = 32, prompt: str = "Return", *, reconnect: bool = True
) -> Iterator[Traffic]:
    """Stream answers to `clients` threads until the block ends; every request is finished before it returns.

    With `reconnect` each request has a connection of its own, so that new replicas get their share; without, each
    client keeps one for as long as its replica lets it.
    """
    seen, stop, lock = Traffic(), threading.Event(), threading.Lock()

    def client() -> openai.OpenAI:
        # max_retries=0: what fails must be seen here, not mended by the client.
        return openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=120)

    def ask() -> None:
        kept = client()
        while not stop.is_set():
            if reconnect:
                kept.close()
                kept = client()
            text, problem = ask_once(kept, model, prompt, max_tokens)
            with lock:
                (seen.failures if problem else seen.texts).append(problem or text)
        kept.close()

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=150)
        assert not any(thread.is_alive() for thread in threads), "a stream never ended"
