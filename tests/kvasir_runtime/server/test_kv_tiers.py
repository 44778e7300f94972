"""The tiers of the KV cache as users and operators see them: usage, metrics, state, a restart, a reset."""

import re
from pathlib import Path

import pytest

from tests.kvasir_runtime.server.harness import Server, StartServer, call

FLAGS = ("--num-threads", "1", "--max-model-len", "256", "--kv-cache-memory", "1Mi", "--kv-offload-host", "8Mi")
PROMPTS = [[number, *range(300, 430)] for number in range(5)]
"""A KV cache of 1 MiB holds three of them."""


def ask(server: Server, prompt: list[int]) -> tuple[list[int], dict[str, object]]:
    """The answer's tokens, and what its usage says of the prompt."""
    reply = server.complete(prompt=prompt, max_tokens=4, temperature=0, ignore_eos=True, return_token_ids=True).json()
    return reply["choices"][0]["token_ids"], reply["usage"]["prompt_tokens_details"]


def series(server: Server) -> dict[str, float]:
    """Value by name and the one label that tells samples apart."""
    text = call("GET", f"{server.url}/metrics").text
    found = {}
    for name, labels, value in re.findall(r"^(\S+?)\{(.*?)\} (\S+)$", text, flags=re.MULTILINE):
        own = re.findall(r'(?:tier|transfer|state|reason)="(\w+)"', labels)
        found[" ".join([name, *own])] = float(value)
    return found


@pytest.mark.slow
def test_tiers_are_told_saved_found_and_reset(start_server: StartServer, tmp_path: Path) -> None:
    """From the first answer over SIGTERM to another process, whose hits come from disk, until all is forgotten."""
    flags = (*FLAGS, "--kv-offload-disk", f"{tmp_path / 'kv'}:64Mi")
    first = start_server(*flags, fake=False).wait_ready()
    answers = [ask(first, prompt)[0] for prompt in PROMPTS]
    again, details = ask(first, PROMPTS[0])
    assert again == answers[0]
    assert details == {"cached_tokens": 128, "cached_tokens_by_tier": {"host": 128}}
    values = series(first)
    assert values["vllm:external_prefix_cache_hits_total"] == values["kvasir:prefix_cache_hits_total host"] == 128
    assert values["vllm:prefix_cache_hits_total"] == values["kvasir:prefix_cache_hits_total device"] == 0
    assert values["kvasir:kv_blocks_moved_total load"] == 8
    assert values["kvasir:kv_disk_state on"] == 1
    assert first.stop() == 0
    assert "saved the KV cache" in first.log
    files = list((tmp_path / "kv").rglob("*.kv"))
    assert len(files) == 5 * 8

    second = start_server(*flags, fake=False).wait_ready()
    assert second.admin("GET", "/admin/state").json()["kv"]["tiers"]["disk_blocks_cached"] == 40
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert ask(second, prompt) == (answer, {"cached_tokens": 128, "cached_tokens_by_tier": {"disk": 128}})
    reset = second.admin("POST", "/admin/reset_prefix_cache", json={"files": True})
    assert reset.json()["blocks"]["disk"] == 40
    assert ask(second, PROMPTS[0]) == (answers[0], {"cached_tokens": 0})
    assert second.stop() == 0


def test_a_server_without_tiers_says_nothing_of_them(server: Server) -> None:
    """Answers look as they do at OpenAI's; a reset is for every server."""
    assert "cached_tokens_by_tier" not in ask(server, [40, 41])[1]
    assert server.admin("GET", "/admin/state").json()["kv"]["tiers"] is None
    assert server.admin("POST", "/admin/reset_prefix_cache").json() == {"blocks": {"device": 5}}
    assert call("POST", f"{server.admin_url}/admin/reset_prefix_cache").status_code == 401
