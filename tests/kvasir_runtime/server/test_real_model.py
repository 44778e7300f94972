"""The whole runtime: the committed model behind the real client."""

import functools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from hypothesis import given, settings

from tests.kvasir_runtime.server.fuzz import SETTINGS, check, requests, structured_requests
from tests.kvasir_runtime.server.harness import Server, call, has_ended, launch, wait_until

pytestmark = pytest.mark.slow

FLAGS = ("--served-model-name", "tiny", "--num-threads", "1", "--kv-cache-memory", "64Mi")
GREEDY = {"model": "tiny", "temperature": 0}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the committed model."""
    server = launch(tmp_path_factory.mktemp("real"), *FLAGS, fake=False)
    wait_until(server._is_ready, timeout_s=90)
    yield server
    server.stop()


@pytest.fixture
def client(real) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0, timeout=90) as client:
        yield client


def test_streams_what_it_answers_whole(client):
    """Greedy text is the same streamed, whole, and through the prefix cache."""
    request = {**GREEDY, "prompt": "Return a new list containing all items. " * 4, "max_tokens": 24}
    whole = client.completions.create(**request)
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**request, stream=True))
    assert streamed == whole.choices[0].text != ""
    again = client.completions.create(**request)
    assert again.choices[0].text == streamed
    assert again.usage.prompt_tokens_details.cached_tokens >= 16


def test_chat_ends_by_itself(client):
    """The model's end-of-turn token ends the answer and is not shown."""
    reply = client.chat.completions.create(**GREEDY, messages=[{"role": "user", "content": "What is a list?"}])
    assert reply.choices[0].finish_reason == "stop"
    assert "<|" not in reply.choices[0].message.content


def test_goes_on_with_an_answer(client):
    """Half of a greedy answer, given back as the assistant's last turn, is continued by the other half."""
    question = {"role": "user", "content": "What is a list?"}
    whole = client.chat.completions.create(**GREEDY, messages=[question]).choices[0].message.content
    half = whole[: whole.index(" ", len(whole) // 2)]
    turns = [question, {"role": "assistant", "content": half}]
    rest = client.chat.completions.create(**GREEDY, messages=turns, extra_body={"continue_final_message": True})
    assert half + rest.choices[0].message.content == whole


def test_best_of_is_the_most_likely(client):
    """Of the same four random continuations, told apart by their mean log-probability."""
    request = {"model": "tiny", "prompt": "def ", "max_tokens": 12, "temperature": 1.0, "seed": 7, "logprobs": 0}
    four = client.completions.create(**request, n=4).choices
    mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)  # noqa: E731
    best = client.completions.create(**request, n=1, best_of=4).choices
    assert [choice.text for choice in best] == [max(four, key=mean).text]


def test_seeds(client):
    """The same seed gives the same text, whatever else runs; another seed and n > 1 give others."""
    request = {"model": "tiny", "prompt": "def ", "max_tokens": 16, "temperature": 1.0}
    first = client.completions.create(**request, seed=1).choices[0].text
    assert client.completions.create(**request, seed=1).choices[0].text == first
    assert client.completions.create(**request, seed=2).choices[0].text != first
    assert len({choice.text for choice in client.completions.create(**request, seed=3, n=4).choices}) > 1


def test_logprobs_are_of_the_chosen_tokens(client):
    """Greedy tokens lead their own alternatives; the chat shape carries bytes."""
    reply = client.completions.create(**GREEDY, prompt="def foo(", max_tokens=8, logprobs=3)
    logprobs = reply.choices[0].logprobs
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert chosen == max(top.values())
    chat = client.chat.completions.create(
        **GREEDY, messages=[{"role": "user", "content": "hi"}], max_tokens=5, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    text = b"".join(bytes(entry.bytes) for entry in content).decode()
    assert text.startswith(chat.choices[0].message.content)


def test_echo_with_logprobs(client):
    """Echo gives the prompt's tokens their probabilities, the first none."""
    reply = client.completions.create(**GREEDY, prompt="def foo(a, b):", max_tokens=1, logprobs=1, echo=True)
    logprobs = reply.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == reply.usage.total_tokens


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 1.5, "presence_penalty": -1.0, "extra_body": {"repetition_penalty": 1.3}},
        {"logit_bias": {"300": -100, "301": 100}},
        {"top_p": 0.1, "extra_body": {"top_k": 3, "min_p": 0.2}},
        {"extra_body": {"min_tokens": 10, "ignore_eos": True}},
        {"extra_body": {"prompt_logprobs": 2, "return_token_ids": True}},
    ],
)
def test_every_sampling_field_reaches_the_engine(client, fields):
    """Each combination is served."""
    reply = client.completions.create(model="tiny", prompt="def foo(", max_tokens=12, **fields)
    assert 1 <= reply.usage.completion_tokens <= 12


@settings(SETTINGS, max_examples=150)
@given(requests(absurd=0.0))
def test_every_sane_request_is_served(real, sent):
    """Whatever the combination of fields within their bounds, the engine survives it."""
    check(real, *sent)
    assert real.probe("/livez").status_code == 200


def test_more_streams_than_blocks(tmp_path):
    """With blocks for two long sequences, sixteen requests are preempted and computed again; all are right."""
    server = launch(tmp_path, "--num-threads", "1", "--kv-cache-memory", "512Ki", "--max-model-len", "160", fake=False)
    wait_until(server._is_ready, timeout_s=90)
    body = {"temperature": 0, "max_tokens": 120, "ignore_eos": True}
    prompts = [f"def function_{number}(" for number in range(16)]
    alone = [server.complete(prompt=prompt, **body).json()["choices"][0]["text"] for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: server.complete(prompt=prompt, **body).json(), prompts))
    assert [reply["usage"]["completion_tokens"] for reply in together] == [120] * 16
    assert [reply["choices"][0]["text"] for reply in together] == alone
    metrics = call("GET", f"{server.url}/metrics").text
    assert 'vllm:num_preemptions_total{engine="0",model_name="tiny-llama"} 0.0' not in metrics
    assert server.probe("/livez").status_code == 200
    assert server.stop() == 0


@settings(SETTINGS, max_examples=250)
@given(structured_requests())
def test_every_structured_request_is_served_or_refused(real, sent):
    """Schemas, grammars and tools, right and wrong: the engine survives them."""
    check(real, *sent)
    assert real.probe("/livez").status_code == 200


def test_every_process_killed_in_turn(tmp_path):
    """Kill -9 of the engine, then of the front end: each time everything is gone and a new start serves."""
    for victim in ("engine", "front end"):
        server = launch(tmp_path, *FLAGS, fake=False)
        wait_until(server._is_ready, timeout_s=90)
        engine = server.engine_pid
        assert server.complete(max_tokens=2).status_code == 200
        os.kill(engine if victim == "engine" else server.process.pid, signal.SIGKILL)
        assert server.process.wait(60) == (1 if victim == "engine" else -signal.SIGKILL)
        wait_until(functools.partial(has_ended, engine))
        assert server.termination_log.exists() == (victim == "engine")
