"""The LM head's weight on the device a shard of the vocabulary at a time."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from slideformer.lanes.lanes import Fence, Lanes
from slideformer.memory.head import ResidentHead

ROWS_TOGETHER = 8  # shards begin at multiples of it: as aligned as the whole
BUFFERS = 2  # one is used while the next arrives


def shard_rows(vocabulary: int, shards: int) -> int:
    """Vocabulary entries of a shard; the last one may have fewer."""
    return -(-vocabulary // (shards * ROWS_TOGETHER)) * ROWS_TOGETHER


class HeadShards:
    """Streams the head's weight from host memory through two buffers, which exist while it passes.

    Args:
        shape: [vocabulary, width] of the whole head.
        wait_fresh: blocks until the host copy is up to date.
        copy_part: copies the flat weight from an element on to a device tensor [n].
    """

    def __init__(
        self,
        lanes: Lanes,
        shape: tuple[int, int],
        shards: int,
        dtype: torch.dtype,
        wait_fresh: Callable[[], None],
        copy_part: Callable[[int, Tensor], None],
    ):
        self._lanes, self._shape, self._dtype = lanes, shape, dtype
        self._rows = shard_rows(shape[0], shards)
        self._wait_fresh, self._copy_part = wait_fresh, copy_part

    @staticmethod
    def bytes_needed(shape: tuple[int, int], shards: int, dtype: torch.dtype) -> int:
        """With one shard's fp32 gradient."""
        return shard_rows(shape[0], shards) * shape[1] * (BUFFERS * dtype.itemsize + 4)

    def each(self) -> Iterator[tuple[int, Tensor]]:
        """(first vocabulary entry, weight [v, width]) of each shard, for computation submitted until the next."""
        self._wait_fresh()
        width = self._shape[1]
        buffers = [self._lanes.empty((self._rows * width,), self._dtype) for _ in range(BUFFERS)]
        firsts = range(0, self._shape[0], self._rows)
        ready = self._fetch(firsts[0], buffers[0])
        for k, first in enumerate(firsts):
            arrived, rows = ready, self._rows_at(first)
            if k + 1 < len(firsts):  # computation with the shard that lies there has been submitted
                ready = self._fetch(firsts[k + 1], buffers[(k + 1) % BUFFERS])
            self._lanes.compute.wait(arrived)
            yield first, buffers[k % BUFFERS][: rows * width].view(rows, width)

    def _fetch(self, first: int, buffer: Tensor) -> Fence:
        width = self._shape[1]
        self._lanes.h2d.wait(self._lanes.compute.record())
        self._lanes.h2d.run(self._copy_part, first * width, buffer[: self._rows_at(first) * width])
        return self._lanes.h2d.record()

    def _rows_at(self, first: int) -> int:
        return min(self._rows, self._shape[0] - first)


class ResidentHeadShards:
    """Shards of a head that is on the device: used in place, so that only a shard's gradient exists in fp32."""

    def __init__(self, head: ResidentHead, vocabulary: int, shards: int):
        self._head, self._rows, self._vocabulary = head, shard_rows(vocabulary, shards), vocabulary

    def each(self) -> Iterator[tuple[int, Tensor]]:
        """As `HeadShards.each`."""
        weight = self._head.weight()
        for first in range(0, self._vocabulary, self._rows):
            yield first, weight[first : first + self._rows]
