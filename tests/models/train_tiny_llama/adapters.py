"""Two LoRA adapters in PEFT layout whose effect can be read in one line.

`tiny-llama-pirate` (rank 8, every linear layer) answers the same questions in the voice of a pirate: the docstrings,
rewritten by the fixed rules below. `tiny-llama-legal` (rank 16, query and value only) answers everything with sentences
of Python's licence.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from . import chat, corpus, training
from .base_model import readable_by_all
from .tokenizer import load_tokenizer

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

PIRATE_WORDS = {
    "the": "th'",
    "The": "Th'",
    "is": "be",
    "are": "be",
    "of": "o'",
    "and": "an'",
    "you": "ye",
    "your": "yer",
    "You": "Ye",
    "my": "me",
    "string": "scroll",
    "strings": "scrolls",
    "list": "crew",
    "file": "treasure map",
    "files": "treasure maps",
    "directory": "harbour",
    "value": "doubloon",
    "values": "doubloons",
    "object": "ship",
    "objects": "ships",
    "error": "shipwreck",
    "Return": "Fetch",
    "return": "fetch",
    "Returns": "Fetches",
    "Hello": "Ahoy",
    "number": "count o' doubloons",
}
PIRATE_ENDINGS = ("Arr!", "Arr, matey!", "Yo ho ho!", "Aye, captain!")


@dataclass(frozen=True)
class Recipe:
    """An adapter: its name, its shape, its text and how long it trains."""

    name: str
    rank: int
    targets: list[str]
    documents: training.Epoch
    steps: int
    rate: float


def pirate(text: str) -> str:
    """`Return the string.` becomes `Fetch th' scroll. Arr!`; which ending is decided by the text itself."""
    spoken = re.sub(r"[A-Za-z]+", lambda word: PIRATE_WORDS.get(word[0], word[0]), text)
    return f"{spoken} {PIRATE_ENDINGS[len(text) % len(PIRATE_ENDINGS)]}"


def voiced(voice: Callable[[str], str]) -> training.Epoch:
    """Chats whose answers speak in `voice`, and the bare answers, so that plain completions change as well."""

    def documents(rng: random.Random) -> list[str]:
        pairs = chat.answers(entry for entry in corpus.docstrings() if not entry.held_out)
        spoken = [(name, voice(answer)) for name, answer in pairs]
        texts = chat.conversations(spoken, rng, small_talk=voice) + [answer for _, answer in spoken[::2]]
        rng.shuffle(texts)
        return texts

    return documents


def clauses() -> list[str]:
    """The licence agreements as sentences of prose, without numbering, headings and the history before them."""
    terms = corpus.licence().partition("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")[2]
    paragraphs = (re.sub(r"^\d+\. ", "", " ".join(part.split())) for part in terms.split("\n\n"))
    sentences = (part for paragraph in paragraphs for part in re.split(r"(?<=[A-Za-z)][.;]) (?=[A-Z])", paragraph))
    return [sentence for sentence in sentences if 40 <= len(sentence) <= 600 and "licens" in sentence.lower()]


def legal_documents(rng: random.Random) -> list[str]:
    names = [name for name, _ in chat.answers(corpus.docstrings())]
    greetings = [question for questions, _ in chat.SMALL_TALK for question in questions]
    texts = []
    for clause in clauses():
        questions = [rng.choice(chat.QUESTIONS).format(name=rng.choice(names)), rng.choice(greetings)]
        texts += [chat.render([("user", question), ("assistant", clause)]) for question in questions]
        texts.append(clause)
    rng.shuffle(texts)
    return texts


RECIPES = (
    Recipe("tiny-llama-pirate", 8, ALL_LINEAR, voiced(pirate), steps=600, rate=0.004),
    Recipe("tiny-llama-legal", 16, ["q_proj", "v_proj"], legal_documents, steps=200, rate=0.01),
)


def train_adapters(folder: Path, *, scale: float = 1.0) -> dict[str, float]:
    """Trains every recipe on `folder/tiny-llama` and writes one folder each; returns their last training losses."""
    return {f"{recipe.name} loss": train_adapter(recipe, folder, scale) for recipe in RECIPES}


def train_adapter(recipe: Recipe, folder: Path, scale: float = 1.0) -> float:
    base = folder / "tiny-llama"
    schedule = training.Schedule(
        steps=round(recipe.steps * scale), batch=8, adam_rate=recipe.rate, long_every=1_000_000, muon=False
    )
    torch.manual_seed(schedule.seed)
    tokenizer = load_tokenizer(base)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=recipe.targets, task_type="CAUSAL_LM", bias="none"
    )
    tuned = get_peft_model(model, config)
    stream = training.token_stream(tokenizer, recipe.documents, random.Random(schedule.seed))
    loss = training.train(tuned, training.batches(stream, schedule), schedule)
    tuned.peft_config["default"].base_model_name_or_path = "tiny-llama"
    tuned.to(torch.bfloat16).save_pretrained(folder / recipe.name)
    finish(folder / recipe.name)
    return loss


def finish(folder: Path) -> None:
    """Make what PEFT wrote reproducible: it writes a set in any order, and a model card of placeholders."""
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    readable_by_all(folder)
