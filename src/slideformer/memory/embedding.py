"""The embedding table: it stays in host memory, and only the rows that a step uses cross the link.

A step's gradient has two parts. *Rows*: those of the tokens the step read, whose gradient is known when backward ends.
*Rest*: all others, whose gradient is zero (their moments still decay) or, with a tied head, the head's, known when
backward begins: their update runs during backward.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from slideformer.lanes.lanes import Fence, Lanes
from slideformer.memory.gradients import GradientRing, HostGradient, copy_async
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.planes import join


class RowSender:
    """Sends the rows of a step's tokens from a table in host memory to the device.

    Args:
        read_rows: copies the rows with the given ids (int64 [u], ascending) to [u, width] on the host.
        max_rows: the most distinct rows of a step.
        dtype: of the rows on the device.
    """

    def __init__(
        self,
        lanes: Lanes,
        allocator: HostAllocator,
        read_rows: Callable[[Tensor, Tensor], None],
        max_rows: int,
        width: int,
        dtype: torch.dtype,
    ):
        self._lanes, self._read_rows = lanes, read_rows
        self._gathered = allocator.empty("embedding rows", (max_rows, width), dtype, pinned=True)
        self._sent: Fence | None = None
        self.row_ids = torch.empty(0, dtype=torch.int64)

    def gather(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Send the rows of `token_ids` [any] to the device; the table must be up to date.

        Returns:
            device rows [u, width], for computation submitted from here, and for each token its row among them.
        """
        self.row_ids, row_of = torch.unique(token_ids, return_inverse=True)
        count = self.row_ids.numel()
        if self._sent is not None:
            self._sent.wait()
        self._read_rows(self.row_ids, self._gathered[:count])
        device_rows = self._lanes.empty((count, self._gathered.shape[1]), self._gathered.dtype)
        self._lanes.h2d.wait(self._lanes.compute.record())
        self._lanes.h2d.run(copy_async, self._gathered[:count], device_rows)
        self._sent = self._lanes.h2d.record()
        self._lanes.compute.wait(self._sent)
        return device_rows, row_of


class EmbeddingTable:
    """Gathers rows for a step, and applies the step's gradient to the table.

    Args:
        state: the table's planes and moments, one parameter [vocabulary, width].
        max_rows: rows a step may touch: its tokens, at most the vocabulary.
        dtype: of the gathered rows, and of their gradient on the link.
        padding_row: row whose gradient is always zero (nn.Embedding's padding_idx), or None.
    """

    def __init__(
        self,
        lanes: Lanes,
        allocator: HostAllocator,
        state: LayerState,
        max_rows: int,
        dtype: torch.dtype,
        padding_row: int | None = None,
    ):
        self._lanes = lanes
        self.state = state
        (field,) = state.layout.fields.values()
        self.vocabulary, self.width = field.shape
        self._table_numel = field.numel
        self._padding_row = padding_row
        max_rows = min(max_rows, self.vocabulary)
        self._sender = RowSender(lanes, allocator, self._read_rows, max_rows, self.width, dtype)
        self._row_gradient = allocator.empty("embedding rows", (max_rows, self.width), dtype, pinned=True)

    @staticmethod
    def host_bytes_needed(vocabulary: int, width: int, max_rows: int, dtype: torch.dtype) -> int:
        return 2 * min(max_rows, vocabulary) * width * dtype.itemsize

    def gather(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`RowSender.gather`: device rows [u, width], and each token's row among them."""
        return self._sender.gather(token_ids)

    def open_gradient(self, row_ids: Tensor, head_gradient: Tensor | None) -> Tensor:
        """An fp32 buffer [u, width] for the rows' gradient.

        With a tied head it starts from the head's gradient at those rows (`row_ids` on the device), which is taken out
        of `head_gradient` [vocabulary, width]: the two meet before anything is rounded.
        """
        gradient = self._lanes.empty((row_ids.numel(), self.width), torch.float32)
        if head_gradient is None:
            self._lanes.compute.run(gradient.zero_)
        else:
            self._lanes.compute.run(take_rows, head_gradient, row_ids, gradient)
        return gradient

    def flush_rows(self, ring: GradientRing, unit: int, gradient: Tensor) -> HostGradient:
        """Send the rows' gradient [u, width] to the host."""
        count = self.row_ids.numel()
        return ring.flush_into(unit, gradient.view(-1), self._row_gradient[:count].view(-1))

    def update_rows(self, hyper: AdamWStep) -> None:
        """Apply the rows' gradient that has landed."""
        count = self.row_ids.numel()
        self.state.adam.step_rows(
            self.row_ids, self._row_gradient[:count], self.state.counts.counted(hyper), self.width
        )

    def update_rest(self, head_gradient: Tensor | None, hyper: AdamWStep) -> None:
        """Update every other row, with a tied head's gradient [vocabulary * width], or with zero."""
        self.state.adam.step_except_rows(self.row_ids, head_gradient, self.state.counts.counted(hyper), self.width)

    @property
    def padding_index(self) -> int | None:
        """Where the padding row stands among the rows gathered last."""
        return place_of(self._padding_row, self.row_ids)

    @property
    def row_ids(self) -> Tensor:
        """Sorted ids of the rows gathered last, int64 [u], on the host."""
        return self._sender.row_ids

    def _read_rows(self, rows: Tensor, out: Tensor) -> None:
        hi = self.state.hi[: self._table_numel].view(self.vocabulary, self.width)
        if out.dtype == torch.bfloat16:
            torch.index_select(hi, 0, rows, out=out)
            return
        lo = self.state.lo[: self._table_numel].view(self.vocabulary, self.width)
        join(hi[rows].view(-1), lo[rows].view(-1), out.view(-1), self.state.adam.threads)


def place_of(row: int | None, row_ids: Tensor) -> int | None:
    """Where a row stands among `row_ids` [u], if it is there."""
    found = (row_ids == row).nonzero() if row is not None else row_ids[:0]
    return int(found[0]) if found.numel() else None


def take_shard_rows(shard: Tensor, first: int, rows: Tensor, out: Tensor) -> None:
    """As `take_rows`, of rows that all lie in a shard of a table, which begins at row `first`."""
    take_rows(shard, rows - first, out)


def take_rows(table: Tensor, rows: Tensor, out: Tensor) -> None:
    """Move rows of an fp32 table to `out`, leaving zeros behind."""
    torch.index_select(table, 0, rows, out=out)
    table.index_fill_(0, rows, 0)
