"""Where requests wait for their grammar before the scheduler hears of them."""

from collections.abc import Callable

from kvasir_runtime.engine.messages import EngineOutput, FinishReason
from kvasir_runtime.request import Request
from kvasir_runtime.structured.compiler import GrammarCompiler
from kvasir_runtime.structured.constraint import Constraint
from kvasir_runtime.structured.grammar import Grammar, GrammarBusyError, GrammarError

WAIT_S = 0.005
"""How long a step without other work waits for grammars that are being compiled."""


class GrammarQueue:
    """Groups of sequences by request id. One thread's alone."""

    def __init__(self, compile_: Callable[[Constraint], Grammar]) -> None:
        self._compiler = GrammarCompiler(compile_)
        self._groups: dict[str, list[Request]] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._groups

    @property
    def num_waiting(self) -> int:
        """Sequences in here."""
        return sum(map(len, self._groups.values()))

    def add(self, group: list[Request], constraint: Constraint) -> None:
        """Let the continuations of one prompt wait for the grammar of `constraint`."""
        request_id = group[0].request_id
        self._groups[request_id] = group
        self._compiler.submit(request_id, constraint)

    def abort(self, request_id: str) -> None:
        """Forget a request; harmless for one that is not here."""
        if self._groups.pop(request_id, None) is not None:
            self._compiler.cancel(request_id)

    def take(self, *, may_wait: bool) -> tuple[list[list[Request]], list[EngineOutput]]:
        """Groups whose grammar is there, now set, and the last outputs of those that cannot have one."""
        if not self._groups:
            return [], []
        if may_wait:
            self._compiler.wait(WAIT_S)
        compiled: list[list[Request]] = []
        refused: list[EngineOutput] = []
        for request_id, outcome in self._compiler.take_ready().items():
            group = self._groups.pop(request_id)
            if isinstance(outcome, GrammarError):
                passes = isinstance(outcome, GrammarBusyError)
                refused += [failure(request, str(outcome), passes=passes) for request in group]
                continue
            for request in group:
                request.grammar = outcome
            compiled.append(group)
        return compiled, refused


def failure(request: Request, reason: str, *, passes: bool = False) -> EngineOutput:
    """The last output of a sequence that its constraint keeps from having another."""
    constraint = request.sampling.constraint
    return EngineOutput(
        request.request_id,
        [],
        request.index,
        FinishReason.ERROR,
        error=reason,
        error_field="" if constraint is None else constraint.field,
        error_passes=passes,
    )
