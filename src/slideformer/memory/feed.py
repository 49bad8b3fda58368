"""Token ids on their way to the device, through one small pinned buffer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slideformer.lanes.lanes import Fence, Lanes
from slideformer.memory.gradients import copy_async
from slideformer.memory.host import HostAllocator


class TokenFeed:
    """Sends a step's integer tensors to the device in one copy that waits for nothing.

    Args:
        capacity: int64 elements of the largest step.
    """

    def __init__(self, lanes: Lanes, allocator: HostAllocator, capacity: int):
        self._lanes = lanes
        self._host = allocator.empty("token ids", (capacity,), torch.int64, pinned=True)
        self._sent: Fence | None = None

    @staticmethod
    def bytes_needed(capacity: int) -> int:
        """On the host, and on the device during a step."""
        return capacity * torch.int64.itemsize

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Device copies of int64 host tensors, for computation submitted from here."""
        if self._sent is not None:
            self._sent.wait()
        total = sum(t.numel() for t in tensors)
        torch.cat([t.reshape(-1) for t in tensors], out=self._host[:total])
        device = self._lanes.empty((total,), torch.int64)
        self._lanes.h2d.wait(self._lanes.compute.record())
        self._lanes.h2d.run(copy_async, self._host[:total], device)
        self._sent = self._lanes.h2d.record()
        self._lanes.compute.wait(self._sent)
        pieces = device.split([t.numel() for t in tensors])
        return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]
