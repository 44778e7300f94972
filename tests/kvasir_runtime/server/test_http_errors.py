"""What clients hear when they ask for what cannot be: OpenAI's error shape, the path, the bound and the value."""

import json
import socket

import httpx
import pytest

from tests.kvasir_runtime.server.harness import call, wait_until

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def post(server, path: str, body: object = None, **kwargs) -> httpx.Response:
    return call("POST", server.url + path, json=body, timeout=30, **kwargs)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be greater than or equal to 1, got 0"),
        ({"temperature": -1}, "temperature", "temperature must be greater than or equal to 0, got -1"),
        ({"temperature": "hot"}, "temperature", "temperature must be a valid number"),
        ({"top_p": 0}, "top_p", "top_p must be greater than 0, got 0"),
        ({"n": 129}, "n", "n must be less than or equal to 128, got 129"),
        ({"stop": [""]}, "stop", "stop must be a string or a list of at most 16 non-empty strings, got ['']"),
        ({"prompt": {"a": 1}}, "prompt", "prompt must be a string, a list of token ids of at least 0"),
        ({"prompt": []}, "prompt", "prompt must be a string"),
        ({"prompt": [1, -2]}, "prompt", "got [1, -2]"),
        ({"prompt": None}, "prompt", "got None"),
        ({"prompt": [3072]}, "prompt", "token ids in prompt must be below 3072, got 3072"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100, got 101"),
        ({"logit_bias": {"3072": 1}}, "logit_bias", "token ids in logit_bias must be below 3072, got 3072"),
        ({"stop_token_ids": [3072]}, "stop_token_ids", "token ids in stop_token_ids must be below 3072"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "min_tokens must be at most max_tokens (4), got 5"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"guided_regex": 3}, "guided_regex", "got 3"),
        ({"suffix": "end"}, "suffix", "suffix is not supported: leave it out"),
        ({"best_of": 1, "n": 2}, "best_of", "best_of must be at least n (2), got 1"),
        ({"best_of": 3, "stream": True}, "best_of", "best_of must be n (1) in a stream"),
        ({"best_of": 129}, "best_of", "less than or equal to 128, got 129"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20, got 21"),
        ({"stream_options": 3}, "stream_options", "got 3"),
    ],
)
def test_bad_completion_fields(server, body, param, message):
    """400 names the field's path, its bound and the value it had."""
    reply = post(server, "/v1/completions", {"prompt": "x", **body})
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is required"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "messages", "role must be system, user or assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "must be of type 'text' with a text, got 'image_url'",
        ),
        ({**CHAT, "tools": [{"type": "function"}]}, "tools[0].function", "tools[0].function"),
        ({**CHAT, "top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs to be true"),
        ({**CHAT, "chat_template": "{{ 1 }}"}, "chat_template", "the server's own is set by --chat-template"),
        ({**CHAT, "functions": []}, "functions", "functions is not supported: send tools"),
        (
            {**CHAT, "continue_final_message": True},
            "messages[0].role",
            "must be 'assistant' with continue_final_message, got 'user'",
        ),
        (
            {**CHAT, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            "must not both be true",
        ),
        ({**CHAT, "max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1, got 0"),
    ],
)
def test_bad_chat_fields(server, body, param, message):
    """Chat refuses like completions do; what the model's own template refuses is the client's to know."""
    reply = post(server, "/v1/chat/completions", body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert message in error["message"]


def test_unknown_fields_are_accepted(server):
    """Clients send fields of the day; they change nothing."""
    reply = post(server, "/v1/completions", {"prompt": "x", "max_tokens": 1, "store": True, "service_tier": "auto"})
    assert reply.status_code == 200


def test_fields_that_change_nothing_are_accepted(server):
    """The neutral values of unsupported fields are no reason to refuse."""
    neutral = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"}
    assert post(server, "/v1/chat/completions", {**CHAT, "max_tokens": 1, **neutral}).status_code == 200
    assert post(server, "/v1/completions", {"prompt": "x", "max_tokens": 1, "best_of": 1}).status_code == 200


def test_template_variables_cannot_replace_the_request(server):
    """chat_template_kwargs reach the template, but neither messages nor the request's own fields give way to them."""
    variables = {"messages": [], "add_generation_prompt": False, "bos_token": "x", "tokenizer": 1, "self": 2}
    plain = post(server, "/v1/chat/completions", {**CHAT, "max_tokens": 1}).json()
    reply = post(server, "/v1/chat/completions", {**CHAT, "max_tokens": 1, "chat_template_kwargs": variables}).json()
    assert reply["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", r'{"prompt": "\ud800"}'),
        ("/v1/completions", r'{"prompt": ["a", "\ud800"]}'),
        ("/v1/completions", r'{"prompt": "x", "stop": "\ud800"}'),
        ("/v1/completions", r'{"prompt": "x", "stop": ["\ud800"]}'),
        ("/v1/completions", r'{"prompt": "x", "cache_salt": "\ud800"}'),
        ("/v1/chat/completions", r'{"messages": [{"role": "user", "content": "\udfff"}]}'),
        ("/v1/chat/completions", r'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]}'),
        ("/tokenize", r'{"prompt": "\udfff"}'),
        ("/v1/completions", r'{"prompt": "x", "temperature": NaN}'),
        ("/v1/completions", r'{"prompt": "x", "max_tokens": 1e999}'),
        ("/v1/completions", "[" * 10_000 + "]" * 10_000),
        ("/v1/completions", '{"prompt": "x", "seed": ' + "9" * 5000 + "}"),
        ("/v1/completions", "5"),
    ],
)
def test_what_json_can_say_and_text_or_numbers_cannot(server, path, body):
    """Half characters, numbers that are none, and depth without end are refused, not stumbled over."""
    reply = call("POST", server.url + path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"]


def test_broken_json(server):
    """400 that says the body is not JSON."""
    reply = call(
        "POST", f"{server.url}/v1/completions", content=b'{"prompt": ', headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert "the body is not valid JSON" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/v1/completions", 405)])
def test_wrong_path_or_method(server, method, path, status):
    """Also what no endpoint answers has OpenAI's shape."""
    reply = call(method, server.url + path)
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_embeddings_are_refused_with_what_is_supported(server):
    """A decoder's hidden states are no embeddings: 400 instead of numbers that mean nothing."""
    reply = call("POST", f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "embeddings_not_supported")
    assert "supported are /v1/completions and /v1/chat/completions" in reply.json()["error"]["message"]


def test_body_too_large(server):
    """413 before the body is read, and while an undeclared one is."""

    def endless():
        for _ in range(40):
            yield b" " * 1024 * 1024

    declared = call("POST", f"{server.url}/v1/completions", content=b" " * (33 * 1024 * 1024), timeout=30)
    assert declared.status_code == 413
    chunked = call("POST", f"{server.url}/v1/completions", content=endless(), timeout=30)
    assert chunked.status_code == 413
    assert "at most 33554432 bytes" in chunked.json()["error"]["message"]


@pytest.mark.parametrize("port", ["port", "admin_port"])
def test_head_too_large(server, port):
    """431 at both ports, before the whole head is there."""
    with socket.create_connection(("127.0.0.1", getattr(server, port))) as client:
        client.sendall(b"GET /version HTTP/1.1\r\nX-Long: " + b"x" * 70_000)
        assert client.recv(12) == b"HTTP/1.1 431"


def test_request_refused_by_the_engine(server):
    """What only the engine can judge comes back as a 400 of this request alone."""
    reply = server.complete(cache_salt="refuse", n=3)
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, "the core refuses this")
    assert server.complete(max_tokens=1).status_code == 200


def test_request_id_is_honoured(server):
    """A usable X-Request-Id comes back and names the completion; an unusable one is replaced."""
    reply = call(
        "POST",
        f"{server.url}/v1/completions",
        json={"prompt": "x", "max_tokens": 1},
        headers={"X-Request-Id": "my-id-1"},
    )
    assert reply.headers["x-request-id"] == "my-id-1"
    assert reply.json()["id"] == "cmpl-my-id-1"
    wait_until(lambda: '"request_id": "my-id-1"' in server.log)  # the line comes after the answer
    bad = call("GET", f"{server.url}/version", headers={"X-Request-Id": "bad id{}"})
    assert bad.headers["x-request-id"] != "bad id{}"


def test_one_line_a_request_in_the_log(server):
    """The access line has what a person looks for: status, tokens, times."""
    headers = {"X-Request-Id": "logged-1"}
    body = {"prompt": [40, 41], "max_tokens": 3, "stream": True}
    call("POST", f"{server.url}/v1/completions", json=body, headers=headers)
    wait_until(lambda: '"logged-1"' in server.log)  # the line comes after the answer
    [entry] = [json.loads(line) for line in server.log.splitlines() if '"logged-1"' in line]
    assert (entry["message"], entry["status"], entry["request_id"]) == ("POST /v1/completions", 200, "logged-1")
    assert (entry["prompt_tokens"], entry["completion_tokens"], entry["finish_reason"]) == (2, 3, "length")
    assert 0 < entry["ttft_ms"] <= entry["duration_ms"]


def test_prompts_are_not_logged(server):
    """Neither what users say nor what the model answers reaches the log."""
    server.complete(prompt="very secret words", max_tokens=3)
    assert "secret" not in server.log


def test_tokenize_and_back(server):
    """Text to ids and back; a conversation as its template renders it."""
    reply = post(server, "/tokenize", {"prompt": "def größe():", "return_token_strs": True}).json()
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert reply["max_model_len"] == 2048
    back = post(server, "/detokenize", {"tokens": reply["tokens"][1:]}).json()
    assert back["prompt"] == "def größe():"
    chat = post(server, "/tokenize", CHAT).json()
    assert chat["count"] > 3
    both = post(server, "/tokenize", {"prompt": "x", **CHAT})
    assert both.status_code == 400
    assert post(server, "/detokenize", {"tokens": [10**9]}).status_code == 400


def test_documentation_is_served(server):
    """/docs and the document behind it exist and name the endpoints."""
    assert call("GET", f"{server.url}/docs").status_code == 200
    paths = call("GET", f"{server.url}/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/health", "/metrics"} <= paths.keys()


def test_health_and_version(server):
    """Readiness for load balancers, and which version answers."""
    assert call("GET", f"{server.url}/health").status_code == 200
    assert call("GET", f"{server.url}/version").json()["version"]
