"""A unit's weights in host memory, and nothing else: for an engine that does not train."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from slideformer.layout import FlatLayout
from slideformer.memory.host import HostAllocator


class LayerWeights:
    """The weights of one unit, in the dtype that computes: 2 bytes a parameter in bf16, where training has 12.

    Attributes:
        flat: [numel], pinned.
    """

    def __init__(self, layout: FlatLayout, allocator: HostAllocator, dtype: torch.dtype):
        self.layout = layout
        self.flat = allocator.empty("weights", (layout.numel,), dtype, pinned=True)
        self._views = layout.views(self.flat)

    @staticmethod
    def bytes_needed(layouts: Iterable[FlatLayout], dtype: torch.dtype) -> int:
        return sum(layout.numel for layout in layouts) * dtype.itemsize

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set parameters by name, from any float dtype."""
        for name, value in tensors.items():
            self._views[name].copy_(value)

    def copy_weights(self, out: Tensor) -> None:
        """Copy everything to `out` [numel] on any device."""
        out.copy_(self.flat, non_blocking=True)

    def read_rows(self, rows: Tensor, out: Tensor) -> None:
        """Copy rows (int64 [u]) of the only parameter [n, width] to `out` [u, width] on the host."""
        (table,) = self._views.values()
        torch.index_select(table, 0, rows, out=out)
