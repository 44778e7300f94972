"""Clients that keep asking while something happens to the cluster."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import openai


@dataclass
class Traffic:
    """What the clients saw: texts that came whole, and what went wrong."""

    texts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def steady(base: str, model: str, clients: int = 4, max_tokens: int = 32) -> Iterator[Traffic]:
    """Stream completions from `clients` threads until the block ends; every request is finished before it returns."""
    seen, stop, lock = Traffic(), threading.Event(), threading.Lock()

    def ask(number: int) -> None:
        # max_retries=0: what fails must be seen here, not mended by the client.
        client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=60)
        while not stop.is_set():
            try:
                stream = client.completions.create(
                    model=model, prompt=f"Return {number}", max_tokens=max_tokens, temperature=0, stream=True
                )
                chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
                whole = bool(chunks) and chunks[-1].finish_reason in ("stop", "length")
                with lock:
                    (seen.texts if whole else seen.failures).append("".join(chunk.text for chunk in chunks))
            except openai.OpenAIError as error:
                with lock:
                    seen.failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=90)
