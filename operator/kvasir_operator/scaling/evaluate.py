"""One look at a service, in the operator and in the simulator: what replicas say, what is remembered, what follows."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvasir_operator.scaling.bounds import Decision, decide
from kvasir_operator.scaling.policy import Policy
from kvasir_operator.scaling.recommender import Changes, Inputs, look
from kvasir_operator.scaling.samples import Sample
from kvasir_operator.scaling.windows import Memory


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A decision with what it was made of."""

    inputs: Inputs
    decision: Decision

    @property
    def changes(self) -> bool:
        """Whether another number of replicas is wanted."""
        return self.decision.to != self.inputs.replicas


def evaluate(
    memory: Memory, samples: Mapping[str, Sample | None], policy: Policy, replicas: int, changes: Changes, now: float
) -> Evaluation:
    """Decide at `now` (seconds) for a service that has `replicas` set; `samples` are of the pods that serve.

    Changes `memory`, which is to be the same one at each look at a service.
    """
    inputs = look(memory, samples, policy, replicas, changes, now)
    decision = decide(inputs)
    window = max(policy.up_window_s, policy.down_window_s)
    memory.recommended(now, decision.least, max(decision.most, decision.to if decision.to > replicas else 0), window)
    return Evaluation(inputs, decision)
