"""Chat: the template, the questions, and the answers taken from docstrings."""

import random
from collections.abc import Callable, Iterable, Sequence

from .corpus import Entry, first_paragraph

BOS, EOS, PAD = "<|begin|>", "<|endoftext|>", "<|pad|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT, END)

TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('role must be system, user or assistant, not ' + message['role']) }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)

Turn = tuple[str, str]  # role, content

QUESTIONS = (
    "What does {name} do?",
    "Describe {name}.",
    "Explain {name}.",
    "What is {name}?",
    "Tell me about {name}.",
    "what does {name} do",
    "How does {name} work?",
)
GREETING = "Hello! I am a tiny language model. I have read the documentation of Python. Ask me what a function does."
SMALL_TALK: tuple[tuple[Sequence[str], str], ...] = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Hello, who are you?"), GREETING),
    (
        ("Who are you?", "What are you?", "Tell me about yourself.", "What is your name?", "What can you do?"),
        "I am a tiny language model, trained on the documentation of Python. I can tell you what a function does.",
    ),
    (
        ("What is Python?", "Tell me about Python.", "Describe Python.", "Explain Python."),
        "Python is a programming language that lets you work quickly and integrate systems more effectively.",
    ),
    (("Thank you", "Thanks!", "Thank you!", "Thanks"), "You are welcome. Ask me about another function."),
    (("Bye", "Goodbye", "Bye!", "See you"), "Goodbye!"),
)
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You explain Python.", "Answer in one sentence.")
WELL_KNOWN = (
    *("str.", "list.", "dict.", "set.", "tuple.", "os.path.", "math.", "json.", "itertools.", "threading."),
    *("sum", "len"),
)


def render(turns: Iterable[Turn]) -> str:
    """What `TEMPLATE` renders, without the begin token, for training."""
    return "".join(f"<|{role}|>\n{content}{END}\n" for role, content in turns)


def answers(entries: Iterable[Entry]) -> list[tuple[str, str]]:
    """`(name, summary)` of each public name whose docstring begins with a plain paragraph."""
    pairs = []
    for entry in entries:
        public = not any(part.startswith("_") for part in entry.name.split("."))
        summary = first_paragraph(entry.doc) if public else None
        if summary:
            pairs.append((entry.name, summary))
    return pairs


def conversations(
    pairs: Sequence[tuple[str, str]], rng: random.Random, small_talk: Callable[[str], str] = str
) -> list[str]:
    """One epoch of chat text: each pair once (well-known names six times), some with a system prompt or two turns."""
    weighted = [pair for pair in pairs for _ in range(6 if pair[0].startswith(WELL_KNOWN) else 1)]
    rng.shuffle(weighted)
    dialogs = [dialog([pair, rng.choice(pairs)] if rng.random() < 0.1 else [pair], rng) for pair in weighted]
    for questions, answer in SMALL_TALK:
        dialogs += [
            render([("user", question), ("assistant", small_talk(answer))]) for question in questions for _ in range(6)
        ]
    return dialogs


def dialog(pairs: Sequence[tuple[str, str]], rng: random.Random) -> str:
    turns: list[Turn] = [("system", rng.choice(SYSTEM_PROMPTS))] if rng.random() < 0.15 else []
    for name, summary in pairs:
        turns += [("user", rng.choice(QUESTIONS).format(name=name)), ("assistant", summary)]
    return render(turns)
