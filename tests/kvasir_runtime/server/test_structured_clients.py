"""Structured output and tools through the clients that people use: `openai` and `langchain-openai`, the real model."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.kvasir_runtime.server.harness import Server, call, launch, wait_until

pytestmark = pytest.mark.slow

ASK = [{"role": "user", "content": "What is a list?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOSED = {"additionalProperties": False}
CLOCK = {"type": "function", "function": {"name": "clock"}}


class Step(BaseModel):
    title: str = Field(max_length=8)
    minutes: int = Field(ge=0, le=90)


class Recipe(BaseModel):
    """A recipe in short."""

    kind: Literal["soup", "cake"]
    steps: list[Step] = Field(max_length=2)
    vegan: bool


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--served-model-name", "tiny", "--num-threads", "1", "--kv-cache-memory", "64Mi")
    server = launch(tmp_path_factory.mktemp("real"), *flags, fake=False)
    wait_until(server._is_ready, timeout_s=90)
    yield server
    server.stop()


@pytest.fixture
def client(real) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0, timeout=90) as client:
        yield client


def test_parse_with_pydantic(client):
    """`chat.completions.parse` gives the model's object, whatever it says."""
    for seed in range(4):
        reply = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Recipe, seed=seed)
        assert isinstance(reply.choices[0].message.parsed, Recipe)
        assert reply.choices[0].finish_reason == "stop"


def test_streamed_parse(client):
    """The streaming helper parses while it reads."""
    with client.chat.completions.stream(model="tiny", messages=ASK, response_format=Recipe, seed=1) as stream:
        reply = stream.get_final_completion()
    assert isinstance(reply.choices[0].message.parsed, Recipe)


def test_json_object(client):
    """JSON mode gives some object."""
    reply = client.chat.completions.create(
        model="tiny", messages=ASK, response_format={"type": "json_object"}, seed=3, max_tokens=300
    )
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content), dict)
    assert reply.choices[0].message.content.startswith("{")


@pytest.mark.parametrize("field", ["guided", "structured_outputs"])
@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        ("regex", r"\d{3}-[a-c]+!", r"\d{3}-[a-c]+!"),
        ("choice", ["soup", "cake"], "soup|cake"),
        ("grammar", 'start: "<" WORD ">"\nWORD: /[a-z]{2,4}/', "<[a-z]{2,4}>"),
        ("json", {"const": 42}, "42"),
        ("json", '{"enum": ["x"]}', '"x"'),
    ],
)
def test_vllms_fields(client, field, kind, value, pattern):
    """Both of vLLM's ways, for completions and chat."""
    extra = {f"guided_{kind}": value} if field == "guided" else {field: {kind: value}}
    done = client.completions.create(model="tiny", prompt="Say", max_tokens=60, seed=5, n=2, extra_body=extra)
    assert all(re.fullmatch(pattern, choice.text) for choice in done.choices if choice.finish_reason == "stop")
    chat = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=60, seed=5, extra_body=extra)
    if chat.choices[0].finish_reason == "stop":
        assert re.fullmatch(pattern, chat.choices[0].message.content)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_json": {"type": "foo"}}, "guided_json", "Invalid type: foo"),
        (
            {"structured_outputs": {"grammar": "start: nothing"}},
            "structured_outputs.grammar",
            'unknown name: "nothing"',
        ),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "cannot be combined with guided_regex"),
        ({"guided_choice": []}, "guided_choice", "at least 1"),
        ({"guided_regex": "a" * 200_000}, "guided_regex", "at most 131072 bytes long, got 200000"),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type",
            "'text', 'json_object' or 'json_schema', got 'xml'",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "is required"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "strict": True, "schema": {"not": {}}},
                }
            },
            "response_format.json_schema.schema",
            'Unimplemented keys: ["not"]',
        ),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs", "not supported"),
        ({"tools": [CLOCK], "tool_choice": "always"}, "tool_choice", "'none', 'auto', 'required'"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        (
            {"tools": [CLOCK], "tool_choice": {"function": {"name": "x"}}},
            "tool_choice.function.name",
            "must be one of clock, got 'x'",
        ),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].function.name", "must be unique"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "got 'a b'"),
        ({"tools": [CLOCK], "tool_choice": "required", "guided_regex": "a"}, "guided_regex", "cannot be combined"),
        (
            {
                "tools": [{"function": {"name": "f", "parameters": {"properties": {"a": {"type": "foo"}}}}}],
                "tool_choice": "required",
            },
            "tools",
            "Invalid type: foo",
        ),
    ],
)
def test_refusals(real, body, param, words, stream):
    """400 that names the field and what is wrong, streamed or not."""
    sent = {"messages": ASK, "max_tokens": 5, "stream": stream, **body}
    reply = call("POST", f"{real.url}/v1/chat/completions", json=sent, timeout=30)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_calls_that_must_come(client, choice):
    """Required and named calls always parse; a named one ends with `stop`, as with OpenAI."""
    for seed in range(3):
        reply = client.chat.completions.create(
            model="tiny", messages=ASK, tools=[WEATHER, CLOCK], tool_choice=choice, seed=seed, temperature=1.5
        )
        (answer,) = reply.choices
        assert answer.message.content is None
        assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")
        assert len({one.id for one in answer.message.tool_calls}) == len(answer.message.tool_calls) > 0
        for one in answer.message.tool_calls:
            arguments = json.loads(one.function.arguments)
            assert (set(arguments) == {"city", "unit"}) if one.function.name == "get_weather" else arguments == {}


def test_calls_come_in_pieces(client):
    """A stream names the call first, then its arguments; put together it is what comes unstreamed."""
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": ASK,
        "tools": [WEATHER],
        "tool_choice": "required",
        "seed": 2,
    }
    whole = client.chat.completions.create(**request).choices[0].message.tool_calls
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    pieces = [piece for chunk in chunks if chunk.choices for piece in chunk.choices[0].delta.tool_calls or ()]
    assert len(pieces) > 3
    told: dict[int, list[str]] = {}
    for piece in pieces:
        assert (piece.id is not None) == (piece.function.name is not None)
        if piece.function.name:
            told[piece.index] = [piece.function.name, ""]
        told[piece.index][1] += piece.function.arguments or ""
    assert [tuple(call) for call in told.values()] == [(one.function.name, one.function.arguments) for one in whole]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage.completion_tokens > 0
    with client.chat.completions.stream(**request) as stream:
        parsed = stream.get_final_completion().choices[0].message.tool_calls
    assert [one.function.arguments for one in parsed] == [one.function.arguments for one in whole]


def test_one_call_where_only_one_is_wanted(client):
    """`parallel_tool_calls: false` allows no second."""
    for seed in range(3):
        reply = client.chat.completions.create(
            model="tiny", messages=ASK, tools=[CLOCK], tool_choice="required", parallel_tool_calls=False, seed=seed
        )
        assert len(reply.choices[0].message.tool_calls) == 1


def test_calls_cut_off_by_max_tokens(client):
    """What there is of a call is told, and that it is not whole."""
    reply = client.chat.completions.create(
        model="tiny", messages=ASK, tools=[WEATHER], tool_choice="required", max_tokens=24, seed=2
    )
    assert reply.choices[0].finish_reason == "length"
    assert (
        reply.choices[0].message.tool_calls is None
        or reply.choices[0].message.tool_calls[0].function.name == "get_weather"
    )


def test_a_conversation_with_results(client):
    """Calls and results of earlier turns reach the model, although its template knows nothing of tools."""
    called = client.chat.completions.create(
        model="tiny", messages=ASK, tools=[WEATHER], tool_choice="required", seed=1, parallel_tool_calls=False
    ).choices[0]
    history = [
        *ASK,
        called.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": called.message.tool_calls[0].id, "content": "Rain, 9 degrees"},
    ]
    reply = client.chat.completions.create(model="tiny", messages=history, tools=[WEATHER], max_tokens=8)
    plain = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=8)
    assert reply.usage.prompt_tokens > plain.usage.prompt_tokens + 50
    assert reply.choices[0].finish_reason in {"stop", "length", "tool_calls"}


def test_auto_with_a_schema(client):
    """With `auto` and a response_format the answer is one or the other."""
    for seed in range(4):
        reply = client.chat.completions.create(
            model="tiny",
            messages=ASK,
            tools=[CLOCK],
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2, 3]}}},
        )
        message = reply.choices[0].message
        assert message.tool_calls or json.loads(message.content) in {1, 2, 3}


def test_logprobs_seeds_and_stop_strings(client):
    """They work with a constraint as without."""
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": ASK,
        "extra_body": {"guided_regex": "(a|b|c){12}", "return_token_ids": True},
    }
    one = client.chat.completions.create(**request, seed=4, logprobs=True, top_logprobs=2).choices[0]
    assert client.chat.completions.create(**request, seed=4).choices[0].message.content == one.message.content
    assert len(one.logprobs.content) == len(one.model_extra["token_ids"])
    assert all(len(entry.top_logprobs) == 2 for entry in one.logprobs.content)
    stopped = client.chat.completions.create(**request, seed=4, stop=["b"]).choices[0]
    assert stopped.message.content == one.message.content.split("b")[0]
    assert stopped.finish_reason == "stop"


def test_a_crowd_of_schemas(real):
    """32 clients with schemas of their own at once: each gets an answer of its own schema."""
    import concurrent.futures

    def ask(number: int) -> Any:
        name = f"n{number}"
        schema = {"type": "object", "properties": {name: {"const": number}}, "required": [name]} | CLOSED
        reply = real.complete(max_tokens=40, guided_json=schema, temperature=1)
        return reply.json()["choices"][0]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for number, choice in enumerate(pool.map(ask, range(32))):
            assert choice["finish_reason"] == "stop"
            assert json.loads(choice["text"]) == {f"n{number}": number}


def test_tokenize_with_tools(real):
    """The tokens of a conversation with tools are those that a request with them has."""
    asked = {"messages": ASK, "tools": [WEATHER]}
    counted = call("POST", f"{real.url}/tokenize", json=asked, timeout=30).json()["count"]
    reply = call("POST", f"{real.url}/v1/chat/completions", json={**asked, "max_tokens": 1}, timeout=30).json()
    assert reply["usage"]["prompt_tokens"] == counted


class TestLangChain:
    """`langchain-openai`, as in its documentation."""

    @pytest.fixture
    def model(self, real: Server) -> Any:
        chat = pytest.importorskip("langchain_openai", reason="a development dependency").ChatOpenAI
        return chat(base_url=f"{real.url}/v1", api_key="none", model="tiny", seed=1, max_retries=0, timeout=90)

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output(self, model, method):
        """`with_structured_output` gives objects of the class."""
        assert isinstance(model.with_structured_output(Recipe, method=method).invoke("A recipe!"), Recipe)

    def test_tools(self, model):
        """`bind_tools` gives calls, whole and streamed."""
        from langchain_core.tools import tool

        @tool
        def set_light(on: bool, level: Literal[1, 2, 3]) -> str:
            """Switch the light."""
            return f"{on} {level}"

        bound = model.bind_tools([set_light], tool_choice="any")
        (called, *_) = bound.invoke("Light!").tool_calls
        assert called["name"] == "set_light"
        assert set_light.invoke(called["args"]) in {f"{on} {level}" for on in (True, False) for level in (1, 2, 3)}
        chunks = list(bound.stream("Light!"))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        assert whole.tool_calls[0]["args"] == called["args"]

    def test_a_round_of_tools(self, model):
        """A call, its result, and the next answer."""
        from langchain_core.messages import HumanMessage, ToolMessage

        bound = model.bind_tools([WEATHER], tool_choice="any", parallel_tool_calls=False)
        asked = HumanMessage("Weather?")
        called = bound.invoke([asked])
        result = ToolMessage("Sun", tool_call_id=called.tool_calls[0]["id"])
        assert model.invoke([asked, called, result], max_tokens=6).usage_metadata["input_tokens"] > 20


def test_docs_load_nothing_from_elsewhere(real):
    """The page about the API works where the browser reaches only this server."""
    page = call("GET", f"{real.url}/docs", timeout=30)
    assert page.status_code == 200
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.text)
    assert "openapi.json" in page.text


def test_the_server_still_lives(real, tmp_path):
    """After all of it."""
    assert real.probe("/livez").status_code == 200
