"""Which rows of a step use which adapter: sorted once a step, used by every layer."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class LoraBatch:
    """Rows with an adapter, sorted by its slot.

    Group g has slot `slots_G[g]` and the rows `rows_N[starts_G1[g]:starts_G1[g + 1]]`.
    """

    rows_N: Ints
    starts_G1: Ints
    slots_G: Ints

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        """Where the three arrays lie; asked for by every layer, and numpy takes its time to tell."""
        return self.rows_N.ctypes.data, self.starts_G1.ctypes.data, self.slots_G.ctypes.data


def group_rows(slots_T: npt.NDArray[np.int64]) -> LoraBatch | None:
    """Group a step's rows by their slot, -1 for none; None when no row has an adapter."""
    with_adapter = np.flatnonzero(slots_T >= 0)
    if len(with_adapter) == 0:
        return None
    order = np.argsort(slots_T[with_adapter], kind="stable")
    rows_N = with_adapter[order]
    slots_G, first_G = np.unique(slots_T[rows_N], return_index=True)
    starts_G1 = np.append(first_G, len(rows_N))
    return LoraBatch(rows_N.astype(np.int32), starts_G1.astype(np.int32), slots_G.astype(np.int32))
