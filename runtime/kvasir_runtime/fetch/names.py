"""Which files a model consists of, and which names may touch the disk."""

import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

ALLOWED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "tokenizer*")
"""Patterns of base names. Nothing here is ever executed or unpickled when it is loaded."""

UNSAFE_ENDINGS = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".pyc", ".so", ".sh", ".exe")
"""Refused even where a pattern would let them in (`tokenizer.pkl`, `tokenizer_fix.py`)."""

CONFIGURATIONS = ("config.json", "adapter_config.json")
"""A folder holds a model or an adapter when it holds one of these."""

INDEX = "model.safetensors.index.json"
SINGLE_WEIGHTS = {"config.json": "model.safetensors", "adapter_config.json": "adapter_model.safetensors"}
OPTIONAL = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
CHECKSUMS = "SHA256SUMS"
_SAFE_PART = re.compile(r"[^\x00-\x1f\x7f/\\]+")


def is_safe(name: str) -> bool:
    """Whether a relative POSIX name stays below its folder and holds no control character or backslash.

    >>> is_safe("a/b.json"), is_safe("../x"), is_safe("/etc/passwd"), is_safe("a//b"), is_safe(".complete")
    (True, False, False, False, False)
    """
    parts = name.split("/")
    return len(name) <= 512 and all(_SAFE_PART.fullmatch(part) and not part.startswith(".") for part in parts)


def is_wanted(name: str) -> bool:
    """Whether a file of this safe name belongs to a model; `original/` and `onnx/` copies of the weights do not.

    >>> is_wanted("model-00001-of-00002.safetensors"), is_wanted("pytorch_model.bin"), is_wanted("tokenizer.pkl")
    (True, False, False)
    """
    path = PurePosixPath(name)
    if not is_safe(name) or name.lower().endswith(UNSAFE_ENDINGS):
        return False
    if path.parts[0] in ("original", "onnx", "openvino"):
        return False
    return any(fnmatchcase(path.name, pattern) for pattern in ALLOWED)


def parse_checksums(text: str) -> dict[str, str]:
    """Read the output of `sha256sum`: lines of digest, blank, `*` or blank, name. Other lines are left out.

    >>> parse_checksums("ab" * 32 + "  ./config.json")["config.json"][:4]
    'abab'
    """
    lines = (re.fullmatch(r"([0-9a-fA-F]{64})[ \t]+\*?(?:\./)?(\S.*?)\s*", line) for line in text.splitlines())
    return {line[2]: line[1].lower() for line in lines if line}
