"""Going on with the assistant's last turn, whatever a template writes around turns; and the best of several answers."""

from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer

from kvasir_runtime.chat_template import ChatTemplate
from kvasir_runtime.engine.messages import TokenLogprobs
from kvasir_runtime.server.completions import most_likely
from kvasir_runtime.server.conversation import render
from kvasir_runtime.server.errors import ApiError
from kvasir_runtime.server.generation import Choice, Prompt
from kvasir_runtime.server.protocol import ChatMessage
from kvasir_runtime.tokenizer import Tokenizer
from tests.kvasir_runtime.server.harness import MODEL, Server, call

FAITHFUL = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[new]{% endif %}"
)
TRIMMING = FAITHFUL.replace("m.content", "m.content | trim")
TALKATIVE = FAITHFUL.replace("[end]", " [that was: {{ m.content[:2] }}]")
WITHOUT_ANSWERS = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"


def post(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = call("POST", server.url + path, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def conversation(last: dict[str, Any]) -> list[ChatMessage]:
    turns = [{"role": "user", "content": "Six by seven?"}, last]
    return [ChatMessage.model_validate(turn) for turn in turns]


def continued(template: str, last: dict[str, Any], **options: Any) -> str:
    tokenizer = Tokenizer(FastTokenizer.from_file(str(MODEL / "tokenizer.json")), ChatTemplate(template, {}))
    options = {"add_generation_prompt": None, "continue_final_message": True, **options}
    return render(tokenizer, conversation(last), **options)


@pytest.mark.parametrize(
    ("template", "said", "ending"),
    [
        (FAITHFUL, "It is", "[assistant]It is"),
        (FAITHFUL, " It is \n", "[assistant] It is \n"),
        (TRIMMING, " It is \n", "[assistant]It is"),
        (TALKATIVE, "It is", "[assistant]It is"),
        (FAITHFUL, [{"type": "text", "text": "It"}, {"type": "text", "text": "is"}], "[assistant]It\nis"),
    ],
)
def test_the_prompt_ends_within_the_last_turn(template: str, said: Any, ending: str) -> None:
    """Right behind its last word; spaces behind that stay where the template keeps them."""
    last = {"role": "assistant", "content": said}
    assert continued(template, last).endswith(ending)
    assert continued(template, last, add_generation_prompt=False) == continued(template, last)


def test_the_next_turn_begins_unless_told_otherwise() -> None:
    """Neither field: the template's beginning of an answer; that one false: nothing behind the last turn."""
    last = {"role": "assistant", "content": "It is"}
    assert continued(FAITHFUL, last, continue_final_message=False).endswith("[end][new]")
    neither = continued(FAITHFUL, last, continue_final_message=False, add_generation_prompt=False)
    assert neither.endswith("It is[end]")


@pytest.mark.parametrize(
    ("template", "last", "param"),
    [
        (FAITHFUL, {"role": "assistant", "content": None}, "messages[1].content"),
        (
            FAITHFUL,
            {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f"}}]},
            "messages[1].content",
        ),
        (FAITHFUL, {"role": "tool", "content": "x"}, "messages[1].role"),
        (WITHOUT_ANSWERS, {"role": "assistant", "content": "x"}, "continue_final_message"),
    ],
)
def test_nothing_to_go_on_with(template: str, last: dict[str, Any], param: str) -> None:
    """400 names what is in the way."""
    with pytest.raises(ApiError) as refused:
        continued(template, last)
    assert (refused.value.status, refused.value.body.error.param) == (400, param)


def test_both_endpoints_read_the_same_prompt(server: Server) -> None:
    """/tokenize shows what a chat completion computes."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]
    body = {"messages": turns, "continue_final_message": True}
    shown = post(server, "/tokenize", body)["tokens"]
    reply = post(server, "/v1/chat/completions", {**body, "max_tokens": 1, "return_token_ids": True})
    assert reply["prompt_token_ids"] == shown
    assert post(server, "/detokenize", {"tokens": shown})["prompt"].endswith("<|assistant|>\nIt is")


def scored(index: int, *logprobs: float) -> Choice:
    prompt = Prompt([1])
    chosen = [TokenLogprobs(5, logprob, 0) for logprob in logprobs]
    return Choice(index, prompt, None, frozenset(), logprobs=chosen)  # type: ignore[arg-type]  # its text is not read


def test_the_most_likely_are_kept() -> None:
    """By the mean of a token, so that short answers have no advantage; each prompt's own, best first."""
    choices = [
        scored(0, -3.0),
        scored(1, -1.0, -2.0),
        scored(2, -1.0, -1.0, -1.0),
        scored(3),
        scored(4, -9.0),
        scored(5, -8.0),
    ]
    assert [choice.index for choice in most_likely(choices, computed=3, kept=2)] == [2, 1, 3, 5]


def test_best_of_answers_with_n(server: Server) -> None:
    """`n` choices come, numbered from 0, without log-probabilities nobody asked for; usage counts what was computed."""
    body = {"prompt": ["a", "b"], "max_tokens": 4, "n": 2, "best_of": 3}
    reply = post(server, "/v1/completions", body)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert {choice["logprobs"] for choice in reply["choices"]} == {None}
    assert reply["usage"]["completion_tokens"] == 2 * 3 * 4
