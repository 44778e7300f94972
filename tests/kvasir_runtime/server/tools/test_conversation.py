"""Conversations with tools as templates read them, and calls that the model chose to make."""

import json
from pathlib import Path
from typing import Any, ClassVar

import openai
import pytest
from tokenizers import Tokenizer as FastTokenizer

from kvasir_runtime.chat_template import ChatTemplate
from kvasir_runtime.server.conversation import render
from kvasir_runtime.server.protocol import ChatCompletionRequest
from kvasir_runtime.server.tools.formats import FORMATS
from kvasir_runtime.server.tools.use import tool_use
from kvasir_runtime.tokenizer import Tokenizer

TINY_LLAMA = Path(__file__).parents[3] / "models" / "tiny-llama"
TOOL = {"type": "function", "function": {"name": "f", "description": "does <b>", "parameters": {"type": "object"}}}
HISTORY: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Go"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "abc", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}],
    },
    {"role": "tool", "tool_call_id": "abc", "content": [{"type": "text", "text": "done"}]},
    {"role": "tool", "tool_call_id": "abd", "content": "twice"},
]
WITH_TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }};{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.a[0] }}){% endfor %}"
    "{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def tokenizer(template: str, tool_template: str | None = None) -> Tokenizer:
    fast = FastTokenizer.from_file(str(TINY_LLAMA / "tokenizer.json"))
    other = None if tool_template is None else ChatTemplate(tool_template, {})
    return Tokenizer(fast, ChatTemplate(template, {}), other)


def rendered(template: Tokenizer, tools: list[Any] | None = None, **options: Any) -> str:
    body = ChatCompletionRequest.model_validate({"messages": HISTORY, "tools": tools})
    return render(template, body.messages, add_generation_prompt=False, tools=body.tools, **options)


def test_a_template_that_knows_tools() -> None:
    """It gets the tools as the client sent them, arguments as objects, results with the id of their call."""
    text = rendered(tokenizer(WITH_TOOLS), [TOOL])
    assert text.startswith(json.dumps(TOOL) + ";[system]Be brief.[user]Go[assistant]f(1)")
    assert text.endswith("[tool]done#abc[tool]twice#abd")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_template_that_knows_none(name: str) -> None:
    """It is told in words, in a form that the reader of the format reads back."""
    tool_format = FORMATS[name]
    text = rendered(tokenizer(PLAIN), [TOOL], tool_format=tool_format)
    assert text.startswith("[system]Be brief.\n\nYou may call these functions:")
    assert json.dumps(TOOL) in text
    called = text.split("[assistant]")[1].split("[user]")[0]
    reader = tool_format.reader({"f"})
    begun, arguments = [*reader.push(called), *reader.finish()]
    assert (begun.name, json.loads(arguments.text)) == ("f", {"a": [1]})  # type: ignore[union-attr]
    results = "<tool_response>\ndone\n</tool_response>\n<tool_response>\ntwice\n</tool_response>"
    assert text.endswith(f"[user]{results}")


def test_a_template_of_its_own_for_tools() -> None:
    """Models with two templates use that of tools where there are any."""
    both = tokenizer(PLAIN, WITH_TOOLS)
    assert rendered(both, [TOOL]).startswith("{")
    assert rendered(both).startswith("[system]Be brief.[user]Go")


def test_arguments_that_are_no_json_stay() -> None:
    """What a model once wrote, cut off, is shown as it was."""
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": '}}]}
    body = ChatCompletionRequest.model_validate({"messages": [turn]})
    text = render(
        tokenizer("{{ messages[0].tool_calls[0].function.arguments }}{# tools #}"),
        body.messages,
        add_generation_prompt=False,
    )
    assert text == '{"a": '


def test_call_ids() -> None:
    """Mistral's templates want nine letters and digits."""
    for parser, length in (("mistral", 9), ("hermes", 29)):
        body = ChatCompletionRequest.model_validate({"messages": HISTORY, "tools": [TOOL]})
        use = tool_use(body, tokenizer(PLAIN), parser)
        assert use is not None
        assert len(use.call_id()) == length
        assert use.call_id() != use.call_id()


class TestAuto:
    """The fake engine repeats the prompt, so that a call in it comes out again, among other text."""

    SAID = 'Look: <tool_call>{"name": "f", "arguments": {"x": "ü}"}}</tool_call> <tool_call>{"name": "f"}</tool_call>'
    REQUEST: ClassVar[dict[str, Any]] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": SAID}],
        "tools": [TOOL],
    }

    @pytest.fixture
    async def client(self, server):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    async def length(self, client) -> int:
        """Tokens of the prompt: as many repeat it once."""
        reply = await client.chat.completions.create(**self.REQUEST, max_tokens=1)
        return int(reply.usage.prompt_tokens)

    @pytest.mark.parametrize("parallel", [True, False])
    async def test_whole_and_streamed(self, client, parallel):
        """Text stays text, calls are calls, and both ways tell the same."""
        request = {**self.REQUEST, "max_tokens": await self.length(client), "parallel_tool_calls": parallel}
        whole = (await client.chat.completions.create(**request)).choices[0]
        called = [(one.function.name, one.function.arguments) for one in whole.message.tool_calls]
        assert called == [("f", '{"x": "ü}"}'), ("f", "{}")][: 2 if parallel else 1]
        assert "Look:" in whole.message.content
        assert whole.finish_reason == "length"
        told: dict[int, list[str]] = {}
        content = ""
        async for chunk in await client.chat.completions.create(**request, stream=True):
            delta = chunk.choices[0].delta
            content += delta.content or ""
            for piece in delta.tool_calls or ():
                if piece.id:
                    told[piece.index] = [piece.function.name, ""]
                told[piece.index][1] += piece.function.arguments or ""
        assert [tuple(call) for call in told.values()] == called
        assert content == whole.message.content

    async def test_none_means_none(self, client):
        """Without leave to call, the same text is text."""
        request = {**self.REQUEST, "tool_choice": "none", "max_tokens": 120}
        message = (await client.chat.completions.create(**request)).choices[0].message
        assert message.tool_calls is None
        assert "<tool_call>" in message.content
