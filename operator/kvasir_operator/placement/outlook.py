"""What placement says to one service: where its model fits, where there is room, and what others need."""

from dataclasses import dataclass

from kvasir_operator.placement.assessment import UNKNOWN, Assessment
from kvasir_operator.placement.capacity import Misfit
from kvasir_operator.placement.groups import ALONE, Turn
from kvasir_operator.placement.rooms import Room


@dataclass(frozen=True, slots=True)
class Outlook:
    """`yields` are the uids of replicas that give their devices; `kept_for` is for whom no pods may be made meanwhile.

    `rooms` are the products on which the model fits, cheapest first; empty: any will do. `turn` is the service's in
    the group that it starts with.
    """

    assessment: Assessment = UNKNOWN
    rooms: tuple[Room, ...] = ()
    yields: frozenset[str] = frozenset()
    kept_for: str = ""
    turn: Turn = ALONE

    @property
    def misfit(self) -> Misfit | None:
        """Why the model cannot run on anything that is there."""
        planned = self.assessment.planned
        return planned if isinstance(planned, Misfit) else None
