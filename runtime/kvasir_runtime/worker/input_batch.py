"""The runner's tables, one row a seat, and the flat tensors of a step made from them without a loop over tokens."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionMetadata, Sequences
from kvasir_runtime.core.scheduler_output import SchedulerOutput

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step's rows.

    `adapter_slots_T` has the slot of each row's adapter, -1 for none. `last_rows_R` are the rows whose logits are
    sampled, `sample_seats_R` their seats and `sample_positions_R` where in its sequence each new token goes.
    """

    input_ids_T: Tensor
    attention: AttentionMetadata
    adapter_slots_T: Ints
    last_rows_R: Tensor
    sample_seats_R: Ints
    sample_positions_R: Ints

    def to(self, device: torch.device) -> "StepInputs":
        """The same with its tensors on a device, copied there without waiting; itself where they are there."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            input_ids_T=_send(self.input_ids_T, device),
            attention=_send_metadata(self.attention, device),
            last_rows_R=_send(self.last_rows_R, device),
        )


def _send_metadata(step: AttentionMetadata, device: torch.device) -> AttentionMetadata:
    def sequences(them: Sequences) -> Sequences:
        return Sequences(_send(them.tables_NM, device), _send(them.lengths_N, device))

    return AttentionMetadata(
        slots_T=_send(step.slots_T, device),
        positions_T=_send(step.positions_T, device),
        decodes=sequences(step.decodes),
        prefills=sequences(step.prefills),
        starts_P=_send(step.starts_P, device),
    )


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """From pinned memory, so that the host need not wait for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True)


class InputBatch:
    """Tokens and block tables of `num_seats` sequences of at most `max_model_len` tokens.

    The tables are zero pages until written, so that an unused seat costs address space only.
    """

    def __init__(self, num_seats: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.token_ids = np.zeros((num_seats, max_model_len + 1), dtype=np.int32)
        self.block_tables = np.zeros((num_seats, -(-max_model_len // block_size)), dtype=np.int32)
        self.adapter_slots = np.full(num_seats, -1, dtype=np.int64)

    def apply(self, output: SchedulerOutput) -> None:
        """Take over who sits where and which blocks were added."""
        for seating in output.seatings:
            tokens = np.frombuffer(seating.token_ids, dtype=np.int32)
            self.token_ids[seating.seat, : len(tokens)] = tokens
            self.adapter_slots[seating.seat] = seating.adapter_slot
            del tokens  # an exported buffer would keep the scheduler's array from growing
        for growth in output.growths:
            self.block_tables[growth.seat, growth.start : growth.start + len(growth.block_ids)] = growth.block_ids

    def prepare(self, output: SchedulerOutput) -> StepInputs:
        """Lay the scheduled tokens out as rows, in the scheduler's order."""
        seats = np.array(output.seats, dtype=np.int64)
        counts = np.array(output.num_new_tokens, dtype=np.int64)
        computed = np.array(output.num_computed_tokens, dtype=np.int64)
        ends = np.cumsum(counts)
        row_seats = np.repeat(seats, counts)
        positions = np.arange(ends[-1]) + np.repeat(computed - (ends - counts), counts)
        slots = self.block_tables[row_seats, positions // self.block_size].astype(np.int64) * self.block_size
        slots += positions % self.block_size
        sampled = np.array(output.samples, dtype=bool)
        lengths = computed + counts
        singles = output.num_single
        return StepInputs(
            input_ids_T=torch.from_numpy(self.token_ids[row_seats, positions]),
            attention=AttentionMetadata(
                slots_T=torch.from_numpy(slots),
                positions_T=torch.from_numpy(positions),
                decodes=self._sequences(seats[:singles], lengths[:singles]),
                prefills=self._sequences(seats[singles:], lengths[singles:]),
                starts_P=torch.from_numpy(np.append(0, ends[singles:] - singles).astype(np.int32)),
            ),
            adapter_slots_T=self.adapter_slots[row_seats],
            last_rows_R=torch.from_numpy(ends[sampled] - 1),
            sample_seats_R=seats[sampled],
            sample_positions_R=lengths[sampled],
        )

    def record(self, inputs: StepInputs, sampled: Tensor) -> None:
        """Store the sampled tokens where the next step looks for them."""
        self.token_ids[inputs.sample_seats_R, inputs.sample_positions_R] = sampled.numpy()

    def _sequences(self, seats: Ints, lengths: Ints) -> Sequences:
        width = -(-int(lengths.max()) // self.block_size) if len(lengths) else 0
        tables_NM = torch.from_numpy(self.block_tables[seats, :width])
        return Sequences(tables_NM, torch.from_numpy(lengths.astype(np.int32)))
