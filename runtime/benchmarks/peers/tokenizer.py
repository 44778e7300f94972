"""A byte-level BPE tokenizer trained on the spot: the benchmark itself speaks token ids, servers want a tokenizer."""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS: Final = "<s>"
EOS: Final = "</s>"
SPECIAL_TOKENS: Final = (BOS, EOS)


def train_tokenizer(vocabulary: int) -> Tokenizer:
    """Train on the docstrings of the standard library; the vocabulary may come out smaller than asked for."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(docstrings(Path(sysconfig.get_paths()["stdlib"])), trainer)
    return tokenizer


def docstrings(root: Path) -> Iterator[str]:
    """Docstrings of the modules under `root`, in a fixed order; installed packages and tests are left out."""
    for path in sorted(root.rglob("*.py")):
        if not {"site-packages", "dist-packages", "test", "tests", "lib2to3"} & set(path.relative_to(root).parts):
            yield from _docstrings_of(path)


def _docstrings_of(path: Path) -> Iterator[str]:
    with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc:
                yield doc
