"""Random requests: known fields with plausible, extreme and absurd values."""

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kvasir_runtime.server.protocol import ChatCompletionRequest, CompletionRequest
from tests.kvasir_runtime.server.harness import Server, call

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.integers(-2, 40)
    | st.floats(allow_nan=False)
    | st.floats(0, 2)
    | st.text(max_size=20)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=50)}),
    min_size=1,
    max_size=3,
)
PROMPTS = st.text(max_size=50) | st.lists(st.integers(0, 3071), max_size=20) | st.lists(st.text(max_size=9), max_size=3)
SCHEMAS = st.recursive(
    st.sampled_from(
        [{}, {"type": "string", "maxLength": 3}, {"type": "integer"}, {"enum": [1, "x", None]}, {"type": "foo"}]
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"properties": st.dictionaries(st.text(max_size=4), inner, max_size=3)}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"$ref": st.sampled_from(["#", "#/$defs/a", "http://x/"]), "$defs": st.just({"a": {}})}),
    ),
    max_leaves=5,
)
REGEXES = st.sampled_from(["[a-c]{2}", "(", "x*", "\\d+|\\p{L}", "(?=a)b", ""])
GRAMMARS = st.sampled_from(['start: "a" | "b"', "start: x", 'root ::= "a" [0-9]*', "", 'start: start "a"', "%json {"])
TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "function": st.fixed_dictionaries(
                {"name": st.sampled_from(["f", "g", "h i"])}, optional={"parameters": SCHEMAS}
            )
        }
    ),
    max_size=3,
)
STRUCTURED: dict[str, st.SearchStrategy[Any]] = {
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}])
    | SCHEMAS.map(lambda schema: {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}),
    "guided_json": SCHEMAS,
    "guided_regex": REGEXES,
    "guided_choice": st.lists(st.text(max_size=4), max_size=3),
    "guided_grammar": GRAMMARS,
    "structured_outputs": st.fixed_dictionaries(
        {}, optional={"json": SCHEMAS, "regex": REGEXES, "whitespace_pattern": st.sampled_from(["", "[ ]?", "("])}
    ),
    "tools": TOOLS,
    "tool_choice": st.sampled_from(["none", "auto", "required", {"function": {"name": "f"}}]),
    "parallel_tool_calls": st.booleans(),
}
"""Fields that make a request one for structured output or tools: right, wrong, and together what cannot be."""

SANE: dict[str, st.SearchStrategy[Any]] = {
    "prompt": PROMPTS,
    "messages": TURNS,
    "model": st.none(),
    "max_tokens": st.integers(1, 8),
    "max_completion_tokens": st.integers(1, 8),
    "temperature": st.floats(0, 100),
    "top_p": st.floats(0, 1, exclude_min=True),
    "top_k": st.integers(-1, 2**40),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.01, 100),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "logprobs": st.integers(0, 20) | st.booleans(),
    "top_logprobs": st.integers(0, 20),
    "prompt_logprobs": st.integers(0, 20),
    "n": st.integers(1, 5),
    "best_of": st.integers(1, 6),
    "continue_final_message": st.booleans(),
    "add_generation_prompt": st.booleans(),
    "stop": st.lists(st.text(min_size=1, max_size=3), max_size=4),
    "stop_token_ids": st.lists(st.integers(0, 3071), max_size=4),
    "logit_bias": st.dictionaries(st.integers(0, 3071).map(str), st.floats(-100, 100), max_size=4),
    "min_tokens": st.integers(0, 8),
    "echo": st.booleans(),
    "stream": st.booleans(),
    "ignore_eos": st.booleans(),
    "stream_options": st.just({"include_usage": True}),
    "return_token_ids": st.booleans(),
}
"""Values that each field should bear; what is not named here only gets absurd ones."""

SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def requests(absurd: float) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A path and a body; each field is absurd with about the given probability, else sane."""
    return st.one_of(
        _bodies(CompletionRequest.model_fields, "prompt", absurd).map(lambda body: ("/v1/completions", body)),
        _bodies(ChatCompletionRequest.model_fields, "messages", absurd).map(
            lambda body: ("/v1/chat/completions", body)
        ),
    )


def _bodies(fields: Any, needed: str, absurd: float) -> st.SearchStrategy[dict[str, Any]]:
    def values(name: str) -> st.SearchStrategy[Any]:
        sane = SANE.get(name)
        return ANYTHING if sane is None else st.floats(0, 1).flatmap(lambda dice: ANYTHING if dice < absurd else sane)

    optional = {name: values(name) for name in fields if name in SANE or absurd > 0}
    always = {needed: values(needed), "max_tokens": values("max_tokens")}
    return st.fixed_dictionaries(always, optional={name: optional[name] for name in optional if name not in always})


def structured_requests() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Requests for structured output and tools, with other fields beside them."""
    others = {name: SANE[name] for name in ("temperature", "seed", "n", "stop", "min_tokens", "stream", "ignore_eos")}

    def bodies(needed: str, path: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
        always = {needed: SANE[needed], "max_tokens": SANE["max_tokens"]}
        return st.fixed_dictionaries(always, optional=STRUCTURED | others).map(lambda body: (path, body))

    return bodies("prompt", "/v1/completions") | bodies("messages", "/v1/chat/completions")


def check(server: Server, path: str, body: dict[str, Any]) -> int:
    """Send it: an answer or a refusal in OpenAI's shape, never a failure. Returns the status."""
    headers = {"Content-Type": "application/json"}
    reply = call("POST", server.url + path, content=json.dumps(body), headers=headers, timeout=60)
    assert reply.status_code in {200, 400, 404}, reply.text
    if reply.status_code == 200:
        assert b'"error"' not in reply.content[:20], reply.text
    else:
        assert reply.json()["error"]["type"] == "invalid_request_error"
        assert reply.json()["error"]["message"]
    return reply.status_code
