"""Whether a request could be answered in time, estimated before it is queued. Pure.

A request is refused only when what was measured says that it cannot make it: where nothing was measured it is taken,
and only those of its output tokens count that it must produce. Worked example: 6,000 prompt tokens wait, prompts are
computed at 2,000 a second, so that the next request begins in 3 s; with 1,000 prompt tokens of its own and 20 ms
between tokens it has its first token after 3.5 s, and 50 that it must produce after 4.5 s.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What lies before a new request, and how fast it goes; None: not measured yet.

    `prompt_speed`: prompt tokens a second while prompts are computed; `token_s`: seconds between a sequence's tokens;
    `finished_per_s`: sequences that end.
    """

    waiting: int
    waiting_tokens: int
    free_seats: int
    prompt_speed: float | None
    token_s: float | None
    finished_per_s: float | None

    def wait_s(self) -> float:
        """Seconds until a request that is queued now begins: its turn at the prompts, and at a seat."""
        prompts = self.waiting_tokens / self.prompt_speed if self.prompt_speed else 0.0
        missing = self.waiting + 1 - self.free_seats
        seats = missing / self.finished_per_s if missing > 0 and self.finished_per_s else 0.0
        return max(prompts, seats)

    def answer_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """Seconds until it has produced `output_tokens`."""
        prompt = prompt_tokens / self.prompt_speed if self.prompt_speed else 0.0
        return self.wait_s() + prompt + (output_tokens - 1) * (self.token_s or 0.0)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Bounds in seconds; None: none. `queue` is on the wait for the first step, `answer` on the whole answer."""

    queue: float | None = None
    answer: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    message: str
    code: str
    retry_after_s: float


def refusal(load: Load, deadlines: Deadlines, prompt_tokens: int, output_tokens: int) -> Refusal | None:
    """Why a request is not taken; None when it may be in time. `output_tokens`: those that it must produce."""
    wait = load.wait_s()
    if deadlines.queue is not None and wait > deadlines.queue:
        told = f"the wait would be about {wait:.1f} s, queue_timeout is {deadlines.queue:g} s"
        return Refusal(told, "queue_timeout", wait - deadlines.queue)
    if deadlines.answer is not None and (took := load.answer_s(prompt_tokens, output_tokens)) > deadlines.answer:
        told = (
            f"the answer would take at least {took:.1f} s ({wait:.1f} s of them in the queue), "
            f"timeout_s is {deadlines.answer:g}"
        )
        return Refusal(told, "deadline_unreachable", max(wait, took - deadlines.answer))
    return None
