"""The tokenizer of a model folder: text to ids and back, and its chat template."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as FastTokenizer

from kvasir_runtime.chat_template import ChatTemplate, ChatTemplateError
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.model_files import read_json

_SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Wraps the `tokenizers` library. Safe to share between tasks; nothing here changes after loading."""

    def __init__(
        self,
        fast: FastTokenizer,
        chat_template: ChatTemplate | None = None,
        tool_template: ChatTemplate | None = None,
        digest: str = "",
    ) -> None:
        """`tool_template` is what some models have for conversations with tools; `digest` stands for the vocabulary."""
        self.digest = digest
        self._fast = fast
        self.chat_template = chat_template
        self.tool_template = tool_template or chat_template
        self._byte_level = "ByteLevel" in str(fast.decoder)
        added = fast.get_added_tokens_decoder().items()
        self._special_ids = {token.content: token_id for token_id, token in added if token.special}

    @classmethod
    def from_folder(cls, folder: Path, chat_template_file: str | None = None) -> "Tokenizer":
        """Load tokenizer.json and the chat template; raises KvasirError(ModelInvalid or InvalidArguments)."""
        path = folder / "tokenizer.json"
        try:
            fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises no narrower class
            msg = f"{path} is no tokenizer: {error}"
            raise KvasirError(Cause.MODEL_INVALID, msg, "download the model again") from None
        fast.no_truncation()
        fast.no_padding()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(fast, *_load_chat_templates(folder, chat_template_file), digest=digest)

    @property
    def vocab_size(self) -> int:
        return self._fast.get_vocab_size(with_added_tokens=True)

    @property
    def template_source(self) -> str:
        """The chat template for tools as it was written; empty without one."""
        return "" if self.tool_template is None else self.tool_template.source

    def special_token_id(self, text: str) -> int | None:
        """The id of a special token that is written so; None when there is none."""
        return self._special_ids.get(text)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokenize; releases the GIL, so that long texts can go to a thread."""
        return self._fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._fast.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for: those of a whole character, or a part of one."""
        token = self._fast.id_to_token(token_id)
        if token is None:
            return b""
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        if self._byte_level and all(char in _BYTE_OF for char in token):
            return bytes(_BYTE_OF[char] for char in token)
        return self._fast.decode([token_id], skip_special_tokens=False).encode()

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation; raises ChatTemplateError, also when the model has no template."""
        template = self.tool_template if variables and "tools" in variables else self.chat_template
        if template is None:
            raise ChatTemplateError(
                "this model has no chat template: use /v1/completions, or start with --chat-template"
            )
        return template.render(messages, add_generation_prompt=add_generation_prompt, variables=variables)


def _load_chat_templates(folder: Path, file: str | None) -> tuple[ChatTemplate | None, ChatTemplate | None]:
    """The model's template and, where it has one, another for conversations with tools."""
    config_file = folder / "tokenizer_config.json"
    config = read_json(config_file) if config_file.exists() else {}
    source = _chat_template_source(folder, config, file)
    if source is None:
        return None, None
    with_tools = _named_template(config, "tool_use") if source == _named_template(config, "default") else None
    special = _special_tokens(config)
    try:
        return ChatTemplate(source, special), None if with_tools is None else ChatTemplate(with_tools, special)
    except ChatTemplateError as error:
        cause = Cause.INVALID_ARGUMENTS if file else Cause.MODEL_INVALID
        raise KvasirError(cause, str(error), "fix it, or give another with --chat-template") from None


def _chat_template_source(folder: Path, config: dict[str, Any], file: str | None) -> str | None:
    """The flag's file, chat_template.jinja, chat_template.json, then tokenizer_config.json, as transformers looks."""
    if file is not None:
        return _read_text(Path(file))
    if (folder / "chat_template.jinja").exists():
        return _read_text(folder / "chat_template.jinja")
    if (folder / "chat_template.json").exists():
        return str(read_json(folder / "chat_template.json").get("chat_template", ""))
    template = config.get("chat_template")
    return template if isinstance(template, str) else _named_template(config, "default")


def _named_template(config: dict[str, Any], name: str) -> str | None:
    entries = config.get("chat_template")
    if not isinstance(entries, list):
        return None
    return next((entry["template"] for entry in entries if entry.get("name") == name), None)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read the chat template {path}: {error}"
        raise KvasirError(Cause.INVALID_ARGUMENTS, msg, "check --chat-template") from None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's printable stand-in of each byte, reversed.

    Printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on, in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(hidden)}


_BYTE_OF: Final = _byte_alphabet()
