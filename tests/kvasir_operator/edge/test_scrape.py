"""Calls to operator ports, as they go over the wire."""

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from kvasir_operator.errors import PodError
from kvasir_operator.planning.state import Unknown
from kvasir_operator.resources import names
from kvasir_operator.scrape import Scraper
from kvasir_runtime.contract.admin_api import (
    AdapterReports,
    AdapterSet,
    AdminState,
    PrefixList,
    WantedAdapter,
    WarmupEnd,
    WarmupPrompt,
    WarmupRequest,
    WarmupState,
)
from tests.kvasir_operator.edge.conftest import Recorder
from tests.kvasir_operator.planning.builders import engine


@pytest.fixture
async def scraper(server: Recorder, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scraper]:
    """A scraper whose pods' operator port is that of the test's server."""
    monkeypatch.setattr(names, "ADMIN_PORT", server.port)
    async with aiohttp.ClientSession() as session:
        yield Scraper(session, timeout_s=0.5)


async def test_state(server: Recorder, scraper: Scraper) -> None:
    """With the service's token; fields of newer runtimes are left out."""
    server.answers = [web.json_response(engine(inflight=3).model_dump(mode="json") | {"newer": 1})]
    state = await scraper.state("127.0.0.1", "secret")
    assert isinstance(state, AdminState)
    assert state.inflight == 3
    assert server.requests[0]["path"] == "/admin/state"
    assert server.requests[0]["headers"]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (web.Response(status=401, text="who are you"), 401, "HTTP 401 who are you"),
        (web.Response(status=500), 500, "HTTP 500"),
        (web.Response(text="<html>"), 0, "Invalid JSON"),
        (web.json_response({"boot_id": "b"}), 0, "Field required"),
    ],
)
async def test_a_state_that_cannot_be_had_is_unknown(
    server: Recorder, scraper: Scraper, answer: web.Response, code: int, words: str
) -> None:
    """With the reason; never zero, never an exception."""
    server.answers = [answer]
    state = await scraper.state("127.0.0.1", "secret")
    assert isinstance(state, Unknown)
    assert (state.status, words in state.reason) == (code, True)


async def test_silence_is_unknown(server: Recorder, scraper: Scraper) -> None:
    """A pod that hangs costs no more than the timeout."""

    async def hang() -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    server.answers = [hang]
    assert isinstance(await scraper.state("127.0.0.1", "secret"), Unknown)
    assert isinstance(await scraper.state("127.0.0.2", "secret"), Unknown)


async def test_drain_and_undrain(server: Recorder, scraper: Scraper) -> None:
    """The time that is left goes with the drain; a refusal is an error."""
    server.answers = [web.json_response({}), web.json_response({}), web.Response(status=409, text="ends")]
    await scraper.drain("127.0.0.1", "secret", 12.5)
    await scraper.undrain("127.0.0.1", "secret")
    assert [(each["method"], each["path"]) for each in server.requests] == [
        ("POST", "/admin/drain"),
        ("POST", "/admin/undrain"),
    ]
    assert json.loads(server.requests[0]["body"]) == {"timeout_s": 12.5}
    with pytest.raises(PodError, match="HTTP 409 ends") as caught:
        await scraper.undrain("127.0.0.1", "secret")
    assert caught.value.status == 409


async def test_a_prompt_is_scored_at_the_user_port(
    server: Recorder, scraper: Scraper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt's own tokens, with our token; the one that was generated is left out."""
    monkeypatch.setattr(names, "USER_PORT", server.port)
    logprobs = {"tokens": ["", "b", "c"], "token_logprobs": [None, -1.5, -0.5], "top_logprobs": [], "text_offset": []}
    server.answers = [web.json_response({"choices": [{"logprobs": logprobs}], "usage": {"prompt_tokens": 2}})]
    found = await scraper.score("127.0.0.1", "secret", "tiny", "a b")
    assert (found.tokens, found.logprobs) == (("", "b"), (None, -1.5))
    assert server.requests[0]["path"] == "/v1/completions"
    assert server.requests[0]["headers"]["Authorization"] == "Bearer secret"
    sent = json.loads(server.requests[0]["body"])
    assert (sent["prompt"], sent["echo"], sent["logprobs"]) == ("a b", True, 0)


@pytest.mark.parametrize("answer", [{"choices": [], "usage": {"prompt_tokens": 1}}, {"choices": [{"logprobs": None}]}])
async def test_an_answer_without_log_probabilities_is_an_error(
    server: Recorder, scraper: Scraper, monkeypatch: pytest.MonkeyPatch, answer: dict[str, object]
) -> None:
    """Which is tried again, and shown."""
    monkeypatch.setattr(names, "USER_PORT", server.port)
    server.answers = [web.json_response(answer)]
    with pytest.raises(PodError, match="no log-probabilities"):
        await scraper.score("127.0.0.1", "secret", "tiny", "a b")


async def test_adapters_are_told_and_heard_of(server: Recorder, scraper: Scraper) -> None:
    """The whole set goes with its tag; what an engine answers that is no report is unknown."""
    reports = AdapterReports(boot_id="b", tag="t", adapters=[])
    server.answers = [
        web.json_response({}),
        web.json_response(reports.model_dump()),
        web.Response(status=409, text="off"),
    ]
    await scraper.tell_adapters(
        "127.0.0.1", "secret", AdapterSet(adapters=[WantedAdapter(name="a", uri="/a")], tag="t")
    )
    assert (server.requests[0]["method"], server.requests[0]["path"]) == ("PUT", "/admin/adapters")
    sent = json.loads(server.requests[0]["body"])
    assert (sent["tag"], sent["adapters"][0]["name"]) == ("t", "a")
    assert await scraper.adapters("127.0.0.1", "secret") == reports
    assert isinstance(await scraper.adapters("127.0.0.1", "secret"), Unknown)


async def test_prefixes_are_asked_for_within_bounds(server: Recorder, scraper: Scraper) -> None:
    """What is no list of prefixes is an error."""
    server.answers = [web.json_response({"prefixes": []}), web.Response(text="<html>")]
    assert await scraper.prefixes("127.0.0.1", "secret", 8, 1000, salted=False) == PrefixList(prefixes=[])
    assert server.requests[0]["path"].partition("?")[0] == "/admin/prefixes"
    with pytest.raises(PodError, match="/admin/prefixes"):
        await scraper.prefixes("127.0.0.1", "secret", 8, 1000, salted=False)


async def test_a_warmup_may_take_longer_than_other_calls(server: Recorder, scraper: Scraper) -> None:
    """As long as it was given; the engine's answer, or an error."""
    state = WarmupState(
        ended=WarmupEnd.DONE, prompts=1, computed_tokens=2, cached_tokens=0, pinned_tokens=0, seconds=0.1
    )
    server.answers = [web.json_response(state.model_dump(mode="json")), web.json_response({"ended": "who knows"})]
    request = WarmupRequest(prompts=[WarmupPrompt(token_ids=[1, 2])], timeout_s=1)
    assert await scraper.warm_up("127.0.0.1", "secret", request) == state
    assert json.loads(server.requests[0]["body"])["prompts"][0]["token_ids"] == [1, 2]
    with pytest.raises(PodError, match="/admin/warmup"):
        await scraper.warm_up("127.0.0.1", "secret", request)
