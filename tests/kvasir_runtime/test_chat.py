"""The terminal client."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvasir_runtime.chat.cli import Conversation
from kvasir_runtime.chat.models import ChatError, Messages
from tests.kvasir_runtime.server.harness import MODEL, launch


class Parrot:
    """Repeats the last message in two pieces; `fail` and `interrupt` do what they say."""

    name = "parrot"

    def reply(self, messages: Messages) -> Iterator[str]:
        text = messages[-1]["content"]
        if text == "fail":
            raise ChatError("no luck")
        yield text[:2]
        if text == "interrupt":
            raise KeyboardInterrupt
        yield text[2:]


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


def test_history_grows_with_each_turn(shown):
    """Both sides are remembered, the system message first."""
    chat = Conversation(Parrot(), "be brief", shown.write)
    assert chat.take("hello")
    assert chat.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello"},
    ]
    assert shown.getvalue() == "hello\n"


def test_reset_keeps_the_system_message(shown):
    """/reset forgets what was said; /system begins anew with other instructions."""
    chat = Conversation(Parrot(), "be brief", shown.write)
    chat.take("hello")
    chat.take("/reset")
    assert chat.messages == [{"role": "system", "content": "be brief"}]
    chat.take("/system be long")
    assert chat.messages == [{"role": "system", "content": "be long"}]
    chat.take("/system")
    assert chat.messages == []


def test_a_failed_reply_leaves_no_trace(shown):
    """The error is shown and the question can be asked again."""
    chat = Conversation(Parrot(), None, shown.write)
    assert chat.take("fail")
    assert chat.messages == []
    assert "(error: no luck)" in shown.getvalue()


def test_an_interrupted_reply_stays_as_far_as_it_came(shown):
    """Ctrl-C ends the reply, not the chat."""
    chat = Conversation(Parrot(), None, shown.write)
    assert chat.take("interrupt")
    assert chat.messages[-1] == {"role": "assistant", "content": "in"}
    assert "(interrupted)" in shown.getvalue()


def test_commands(shown):
    """/quit leaves, /help lists the commands, others are not sent to the model."""
    chat = Conversation(Parrot(), None, shown.write)
    assert not chat.take("/quit")
    assert chat.take("/help")
    assert chat.take("/nonsense")
    assert chat.messages == []
    assert "/reset" in shown.getvalue()
    assert "unknown command /nonsense" in shown.getvalue()


def chat_process(*flags: str, lines: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvasir_runtime", "chat", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, input=lines, capture_output=True, text=True, timeout=200, env=environment, check=False
    )


def test_with_a_server(tmp_path):
    """--url streams from a running server; its errors are shown, an unknown model is refused."""
    server = launch(tmp_path, "--api-key", "secret").wait_ready()
    try:
        flags = ["--url", f"{server.url}/v1", "--api-key", "secret"]
        done = chat_process(*flags, "--max-tokens", "30", lines="What is a list?\n/quit\n")
        assert done.returncode == 0, done.stderr
        assert "tiny-llama: type a message" in done.stdout
        assert "What is a list" in done.stdout
        too_long = chat_process(*flags, "--max-tokens", "3000", lines="hi\n")
        assert "(error: max_tokens must be at most" in too_long.stdout
        assert "does not serve 'other'" in chat_process(*flags, "--model", "other", lines="").stderr
        assert "a valid API key is needed" in chat_process("--url", server.url, lines="").stderr
    finally:
        server.stop()


@pytest.mark.slow
def test_with_a_model_of_its_own():
    """--model loads the model into the process and answers from it."""
    flags = ["--model", str(MODEL), "--num-threads", "1", "--temperature", "0", "--max-tokens", "8"]
    done = chat_process(*flags, lines="What is a list?\n/reset\nWhat is a list?\n/quit\n")
    assert done.returncode == 0, done.stderr
    first, forgotten, second = done.stdout.splitlines()[1:4]
    assert first == second != ""
    assert forgotten == "(forgotten)"
