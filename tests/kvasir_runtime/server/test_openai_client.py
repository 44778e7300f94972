"""The real `openai` client against a real server process; the engine repeats the prompt's tokens."""

from collections.abc import AsyncIterator

import openai
import pytest


@pytest.fixture
async def client(server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_completes_a_prompt(client):
    """A whole completion: the text, why it ended, and what it cost."""
    reply = await client.completions.create(model="tiny", prompt="def foo(a, b):", max_tokens=4)
    assert reply.choices[0].text == "def foo("[: len(reply.choices[0].text)]
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 4
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 4


async def test_max_tokens_defaults_to_openais_16(client):
    """A completion without max_tokens has 16 tokens."""
    reply = await client.completions.create(model="tiny", prompt="def foo(a, b):")
    assert reply.usage.completion_tokens == 16


async def test_streams_what_it_answers_whole(client):
    """The pieces of a stream join to the text of the same request unstreamed."""
    request = {"model": "tiny", "prompt": "def größe(日本語): 'naïve 🙂'", "max_tokens": 40}
    whole = await client.completions.create(**request)
    stream = await client.completions.create(**request, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert all(chunk.usage is None for chunk in chunks)
    assert "\N{REPLACEMENT CHARACTER}" not in whole.choices[0].text.rstrip("\N{REPLACEMENT CHARACTER}")


async def test_stream_ends_with_usage_when_asked(client):
    """include_usage adds a last chunk without choices."""
    stream = await client.completions.create(
        model="tiny", prompt="def", max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_several_prompts_and_continuations(client):
    """Choices come in the order of the prompts, `n` for each."""
    reply = await client.completions.create(model="tiny", prompt=["alpha beta", "return"], n=2, max_tokens=2)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].text == reply.choices[1].text
    assert reply.choices[2].text.startswith("return")
    assert reply.usage.completion_tokens == 8


async def test_token_ids_in_and_out(client):
    """A prompt of token ids; return_token_ids gives back what went in and came out."""
    reply = await client.completions.create(
        model="tiny", prompt=[40, 41, 42], max_tokens=5, extra_body={"return_token_ids": True}
    )
    assert reply.choices[0].model_extra["prompt_token_ids"] == [40, 41, 42]
    assert reply.choices[0].model_extra["token_ids"] == [40, 41, 42, 40, 41]


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_string_across_tokens(client, stream):
    """A stop string ends the text before itself, though it spans tokens, and says so."""
    prompt = "one two three four five six"
    reply = await client.completions.create(
        model="tiny", prompt=prompt, max_tokens=30, stop=["e fo", "never"], stream=stream
    )
    if stream:
        chunks = [chunk async for chunk in reply]
        text, last = "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0]
    else:
        text, last = reply.choices[0].text, reply.choices[0]
    assert text == "one two thre"
    assert (last.finish_reason, last.model_extra["stop_reason"]) == ("stop", "e fo")


async def test_stop_token_is_not_shown_but_counted(client):
    """A stop token ends the text without its own text; its id is the stop reason."""
    reply = await client.completions.create(
        model="tiny", prompt=[40, 41, 42], extra_body={"stop_token_ids": [42], "return_token_ids": True}
    )
    both = await client.completions.create(model="tiny", prompt=[40, 41], max_tokens=2)
    assert reply.choices[0].text == both.choices[0].text
    assert reply.choices[0].model_extra["stop_reason"] == 42
    assert reply.choices[0].model_extra["token_ids"] == [40, 41, 42]


async def test_completion_logprobs(client):
    """The legacy lists run in parallel, and echo puts the prompt before them."""
    reply = await client.completions.create(model="tiny", prompt=[40, 41, 42, 43], max_tokens=3, logprobs=2, echo=True)
    logprobs = reply.choices[0].logprobs
    size = reply.usage.total_tokens
    assert [len(part) for part in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs)] == [size] * 3
    assert logprobs.token_logprobs[0] is None
    assert "".join(logprobs.tokens) == reply.choices[0].text
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])


async def test_chat(client):
    """A conversation goes through the model's template; the answer is the assistant's."""
    reply = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "What is a list?"}], max_completion_tokens=6
    )
    assert reply.choices[0].message.role == "assistant"
    assert reply.usage.completion_tokens == 6
    assert reply.id.startswith("chatcmpl-")


async def test_chat_content_in_parts(client):
    """Text parts read like one text."""
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "a list?"}]
    joined = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "What is\na list?"}], max_tokens=30
    )
    reply = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], max_tokens=30
    )
    assert reply.choices[0].message.content == joined.choices[0].message.content


async def test_chat_streams_role_text_and_logprobs(client):
    """The first chunk names the role; every token has its bytes and alternatives."""
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "What is a list?"}],
        max_tokens=12,
        stream=True,
        logprobs=True,
        top_logprobs=2,
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    scored = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert len(scored) == 12
    assert all(len(entry.top_logprobs) == 2 and entry.logprob == -0.5 for entry in scored)
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_chat_max_tokens_defaults_to_the_rest_of_the_context(client):
    """Without max_tokens the answer may fill the context."""
    reply = await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    assert reply.usage.total_tokens == 2048


async def test_models(client):
    """Every served name is a model, and can be asked for alone."""
    models = await client.models.list()
    assert [model.id for model in models.data] == ["tiny", "other-name"]
    assert (await client.models.retrieve("other-name")).id == "other-name"


async def test_unknown_model_is_not_found(client):
    """404 with the code that clients look for, naming what is served."""
    with pytest.raises(openai.NotFoundError) as caught:
        await client.completions.create(model="gpt-5", prompt="x")
    assert caught.value.code == "model_not_found"
    assert "tiny, other-name" in str(caught.value)


async def test_too_long_a_prompt(client):
    """400 with OpenAI's code, the bound and the length."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="tiny", prompt=[40] * 2048)
    assert caught.value.code == "context_length_exceeded"
    assert "2048 tokens, got 2048" in str(caught.value)


async def test_too_many_tokens_asked(client):
    """max_tokens must fit behind the prompt."""
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at most 2038 after this prompt, got 2039"):
        await client.completions.create(model="tiny", prompt=[40] * 10, max_tokens=2039)
