"""Token ids with a number each, by seat: biases, and tokens that must not come before a position."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class SeatTokens:
    """All seats' entries lie in three flat columns, so that a batch takes those of its rows without a loop."""

    def __init__(self) -> None:
        self._seats = np.empty(0, dtype=np.int64)
        self._ids = np.empty(0, dtype=np.int64)
        self._values = np.empty(0, dtype=np.float32)

    def replace(self, seat: int, ids: list[int], values: list[float]) -> None:
        """Forget the seat's entries and take these."""
        keep = self._seats != seat
        if not ids and keep.all():
            return
        self._seats = np.concatenate((self._seats[keep], np.full(len(ids), seat)))
        self._ids = np.concatenate((self._ids[keep], np.array(ids, dtype=np.int64)))
        self._values = np.concatenate((self._values[keep], np.array(values, dtype=np.float32)))

    def of_rows(self, row_of_seat: Ints) -> tuple[Ints, Ints, Floats]:
        """Row, token id and value of each entry whose seat has a row; `row_of_seat` is -1 for the others."""
        rows = row_of_seat[self._seats]
        keep = rows >= 0
        return rows[keep], self._ids[keep], self._values[keep]
