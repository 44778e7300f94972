"""The base model: 3.5 million parameters with grouped-query attention, in Hugging Face layout."""

import json
import random
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import chat, corpus, training
from .tokenizer import VOCABULARY, load_tokenizer, train_tokenizer

MAX_POSITIONS = 2048


def architecture(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Four layers of width 256; heads of 64 and sizes that are multiples of 128 suit the kernels."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def documents(rng: random.Random) -> list[str]:
    """One epoch: docstrings, the language reference and chats about them, shuffled together."""
    seen = [entry for entry in corpus.docstrings() if not entry.held_out]
    texts = [entry.doc for entry in seen] + corpus.topics() + chat.conversations(chat.answers(seen), rng)
    rng.shuffle(texts)
    return texts


def held_out() -> list[str]:
    return [entry.doc for entry in corpus.docstrings() if entry.held_out]


def train_base(folder: Path, schedule: training.Schedule) -> dict[str, float]:
    """Trains tokenizer and model, writes both to `folder`, returns the measured numbers."""
    rng = random.Random(schedule.seed)
    torch.manual_seed(schedule.seed)
    tokenizer = train_tokenizer(documents(random.Random(schedule.seed)), MAX_POSITIONS)
    model = LlamaForCausalLM(architecture(tokenizer))
    stream = training.token_stream(tokenizer, documents, rng)
    final = training.train(model, training.batches(stream, schedule), schedule)
    save(model, tokenizer, folder)
    return {"train loss": final, "held-out loss": held_out_loss(folder)}


def refine(folder: Path, documents: training.Epoch, schedule: training.Schedule) -> dict[str, float]:
    """Goes on training the model of `folder` with other text, in place; returns the measured numbers."""
    torch.manual_seed(schedule.seed)
    tokenizer = load_tokenizer(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stream = training.token_stream(tokenizer, documents, random.Random(schedule.seed))
    final = training.train(model, training.batches(stream, schedule), schedule)
    save(model, tokenizer, folder)
    return {"train loss": final, "held-out loss": held_out_loss(folder)}


def chats(rng: random.Random) -> list[str]:
    return chat.conversations(chat.answers(entry for entry in corpus.docstrings() if not entry.held_out), rng)


def held_out_loss(folder: Path) -> float:
    """Of the saved weights, as they are loaded by everyone else."""
    loaded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return training.mean_loss(loaded, load_tokenizer(folder), held_out())


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    end_of_turn = tokenizer.convert_tokens_to_ids(chat.END)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, end_of_turn],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    known = {key: value for key, value in json.loads(settings.read_text()).items() if "local" not in key}
    known["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that older readers know
    settings.write_text(json.dumps(known, indent=2) + "\n")
    readable_by_all(folder)


def readable_by_all(folder: Path) -> None:
    """Safetensors writes files with mode 0600; containers read the files as another user."""
    for path in folder.iterdir():
        path.chmod(0o644)
