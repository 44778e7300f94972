"""The conversation in the terminal: reads lines, shows replies as they come, remembers both."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvasir_runtime import cli, logs
from kvasir_runtime.chat.models import ChatError, ChatModel, LocalModel, Messages, Options, RemoteModel
from kvasir_runtime.contract.failures import Cause, KvasirError

if TYPE_CHECKING:
    from kvasir_runtime.engine.messages import StartupProgress

ENGINE_FLAGS: Final = (
    *("model", "dtype", "quantization", "max_model_len", "chat_template"),
    *("kv_cache_memory", "device", "num_threads", "seed"),
)
"""Settings that matter to a chat with a model of its own."""

HELP: Final = """\
/reset          forget the conversation
/system TEXT    begin a new conversation with this system message
/help           show this
/quit           leave (so does Ctrl-D); Ctrl-C ends a reply"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Without --url the model is loaded into this process; with it, --model is the served model's name."
    parser.add_argument("--url", help="a running server, such as http://localhost:8000")
    parser.add_argument(
        "--api-key", dest="key", metavar="KEY", default=os.environ.get("KVASIR_API_KEY"), help="key for the server"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest reply in tokens")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the model's)")
    cli.add_engine_arguments(parser, only=ENGINE_FLAGS)


def run(namespace: argparse.Namespace) -> int:
    """Chat until the user leaves; returns the exit status."""
    _check_least(namespace.max_tokens, "--max-tokens", 1)
    _check_least(namespace.temperature, "--temperature", 0)
    options = Options(namespace.max_tokens, namespace.temperature)
    if namespace.url:
        model: ChatModel = RemoteModel(namespace.url, getattr(namespace, "model", None), namespace.key, options)
    else:
        model = _load(namespace, options)
    Conversation(model, namespace.system).run(sys.stdin.isatty())
    return 0


class Conversation:
    """The turns so far, and what the user's lines do to them."""

    def __init__(self, model: ChatModel, system: str | None = None, write: Callable[[str], None] | None = None) -> None:
        self._model = model
        self._write = write or _write
        self._system = system
        self.messages: Messages = []
        self._reset()

    def run(self, interactive: bool) -> None:
        """Read lines until the end of input or /quit."""
        if interactive:
            import readline  # noqa: F401, PLC0415 - gives input() editing and history
        self._write(f"{self._model.name}: type a message, /help for more.\n")
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except (EOFError, KeyboardInterrupt):
                self._write("\n" if interactive else "")
                return
            if line and not self.take(line):
                return

    def take(self, line: str) -> bool:
        """Act on one line; False when the user wants to leave."""
        command, _, rest = line.partition(" ")
        match command:
            case "/quit" | "/exit":
                return False
            case "/help":
                self._write(f"{HELP}\n")
            case "/reset":
                self._reset()
                self._write("(forgotten)\n")
            case "/system":
                self._system = rest or None
                self._reset()
                self._write("(new conversation)\n")
            case _ if command.startswith("/"):
                self._write(f"unknown command {command}; /help lists them\n")
            case _:
                self._answer(line)
        return True

    def _answer(self, line: str) -> None:
        """One turn; a reply that fails leaves no trace in the history, an interrupted one stays as far as it came."""
        self.messages.append({"role": "user", "content": line})
        pieces: list[str] = []
        try:
            for piece in self._model.reply(self.messages):
                self._write(piece)
                pieces.append(piece)
        except ChatError as error:
            self.messages.pop()
            self._write(f"(error: {error})\n")
            return
        except KeyboardInterrupt:
            self._write(" (interrupted)")
        self._write("\n")
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _reset(self) -> None:
        self.messages = [{"role": "system", "content": self._system}] if self._system else []


def _load(namespace: argparse.Namespace, options: Options) -> LocalModel:
    if getattr(namespace, "model", None) is None and "KVASIR_MODEL" not in os.environ:
        raise KvasirError(
            Cause.INVALID_ARGUMENTS, "either --model DIR or --url URL is needed", "see kvasir-runtime chat --help"
        )
    logs.configure("warning", "pretty")
    args = cli.engine_args(namespace, os.environ)
    from kvasir_runtime.model_files import read_model_folder  # noqa: PLC0415 - a remote chat needs none of these
    from kvasir_runtime.tokenizer import Tokenizer  # noqa: PLC0415

    folder = read_model_folder(args.model).path
    tokenizer = Tokenizer.from_folder(folder, args.chat_template)
    with _progress() as show:
        from kvasir_runtime.engine.engine_core import EngineCore  # noqa: PLC0415

        core = EngineCore(cli.engine_config(args.model_copy(update={"max_num_seqs": 1})), show)
    return LocalModel(core, tokenizer, Path(args.model).resolve().name, options)


@contextmanager
def _progress() -> "Iterator[Callable[[StartupProgress], None]]":
    from kvasir_runtime.server.startup_report import StartupReport, make_report  # noqa: PLC0415

    report: StartupReport = make_report("pretty")
    try:
        yield lambda progress: report.show(progress, 0.0)
    finally:
        report.close()


def _check_least(value: float | None, flag: str, least: int) -> None:
    if value is not None and not value >= least:
        raise KvasirError(Cause.INVALID_ARGUMENTS, f"{flag} must be at least {least}, got {value}")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
