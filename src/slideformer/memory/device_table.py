"""The embedding table where its state is on the device: rows are read in place, and one update takes all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slideformer.lanes.lanes import Lanes
from slideformer.memory.device_state import DeviceState, one_gate
from slideformer.memory.embedding import place_of, take_rows
from slideformer.memory.feed import TokenFeed
from slideformer.memory.gradients import GradientRing, HostGradient
from slideformer.memory.host import HostAllocator
from slideformer.optim.adamw import AdamWStep


class DeviceTable:
    """As `EmbeddingTable`, which has the gradient's two parts: they meet in `gradient` before the only update.

    Args:
        state: the table's planes and moments, one parameter [vocabulary, width].
        max_rows: rows a step may touch: its tokens, at most the vocabulary.
        padding_row: row whose gradient is always zero, or None.

    Attributes:
        gradient: bfloat16 [vocabulary * width], a tied head's gradient, or zero; the rows' follows.
        row_ids: sorted ids of the rows gathered last, int64 [u], on the host.
        device_row_ids: the same on the device.
    """

    def __init__(
        self,
        lanes: Lanes,
        allocator: HostAllocator,
        state: DeviceState,
        max_rows: int,
        padding_row: int | None = None,
    ):
        self._lanes, self.state, self._padding_row = lanes, state, padding_row
        (field,) = state.layout.fields.values()
        self.vocabulary, self.width = field.shape
        self._weights = state.hi[: field.numel].view(field.shape)
        max_rows = min(max_rows, self.vocabulary)
        self._ids = TokenFeed(lanes, allocator, max_rows)
        self.row_ids = torch.empty(0, dtype=torch.int64)
        self.device_row_ids = self.row_ids
        trained = state.layout.trained_numel
        self.gradient = torch.zeros(trained, dtype=torch.bfloat16, device=lanes.device)
        self._row_gradient = torch.zeros(
            (max_rows if trained else 0, self.width), dtype=torch.bfloat16, device=lanes.device
        )

    @staticmethod
    def device_bytes_needed(trained_numel: int, width: int, max_rows: int) -> int:
        """Of the gradients."""
        return 2 * (trained_numel + (max_rows * width if trained_numel else 0))

    def gather(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Device rows [u, width] of `token_ids` [any], and for each token its row among them."""
        self.row_ids, row_of = torch.unique(token_ids, return_inverse=True)
        (self.device_row_ids,) = self._ids.send([self.row_ids])
        self.state.wait_updated(self._lanes.compute)
        return self._lanes.compute.run(torch.index_select, self._weights, 0, self.device_row_ids), row_of

    def open_gradient(self, row_ids: Tensor, head_gradient: Tensor | None) -> Tensor:
        """An fp32 buffer [u, width] for the rows' gradient, as in `EmbeddingTable`."""
        gradient = self._lanes.empty((row_ids.numel(), self.width), torch.float32)
        if head_gradient is None:
            self._lanes.compute.run(gradient.zero_)
        else:
            self._lanes.compute.run(take_rows, head_gradient, row_ids, gradient)
        return gradient

    def flush_rows(self, ring: GradientRing, unit: int, gradient: Tensor) -> HostGradient:
        """Round the rows' gradient [u, width] and sum its squares; it stays on the device."""
        count = self.row_ids.numel()
        return ring.flush_into(unit, gradient.view(-1), self._row_gradient[:count].view(-1))

    def apply(self, tied: bool, row_ids: Tensor, hyper: AdamWStep, gates: Sequence[Tensor]) -> None:
        """Update all rows, with the gradients flushed last: of the rows `row_ids` and, if tied, of the head."""
        if not tied:
            self.gradient.zero_()
        table = self.gradient[: self.vocabulary * self.width].view(self.vocabulary, self.width)
        table.index_copy_(0, row_ids, self._row_gradient[: row_ids.numel()])
        self.state.adam.step(self.gradient, self.state.counts.counted(hyper), gate=one_gate(gates))

    @property
    def padding_index(self) -> int | None:
        """Where the padding row stands among the rows gathered last."""
        return place_of(self._padding_row, self.row_ids)
