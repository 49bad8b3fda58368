"""Memory for copies of units' states: what lets training go on while a checkpoint is written."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from slideformer import _core
from slideformer.memory.host import HostAllocator


class SnapshotMemory:
    """Buffers of the sizes of the largest units, so that each unit fits into one of them. Not locked.

    Args:
        unit_bytes: sizes of all units' states.
        units: how many may be held at once; 0 holds none, and all holds the whole state.
    """

    def __init__(self, unit_bytes: Iterable[int], units: int, allocator: HostAllocator):
        self._free = [
            allocator.empty("checkpoint copies", (size,), torch.uint8) for size in _largest(unit_bytes, units)
        ]

    @staticmethod
    def bytes_needed(unit_bytes: Iterable[int], units: int) -> int:
        return sum(_largest(unit_bytes, units))

    def take(self, size_bytes: int) -> Tensor | None:
        """The smallest free buffer that holds `size_bytes`, if there is one. Where all units have a buffer, none is
        left without: no smaller one ever takes a larger one's, as one of its own size is free."""
        fitting = [buffer for buffer in self._free if buffer.numel() >= size_bytes]
        if not fitting:
            return None
        smallest = min(fitting, key=torch.Tensor.numel)
        self._free = [buffer for buffer in self._free if buffer is not smallest]
        return smallest

    def has_room_for(self, size_bytes: int) -> bool:
        return any(buffer.numel() >= size_bytes for buffer in self._free)

    def give_back(self, buffer: Tensor) -> None:
        self._free.append(buffer)


class StateCopy:
    """A unit's tensors, copied into a buffer [at least their bytes, uint8] by so many threads.

    Not by PyTorch, which would give each thread that copies a team of the whole machine's size.
    """

    def __init__(self, tensors: Mapping[str, Tensor], buffer: Tensor, threads: int):
        self.buffer = buffer
        self._tensors = {}
        for name, tensor in tensors.items():  # planes of 16 bits in pairs, so what comes behind them is aligned
            part, buffer = buffer[: tensor.nbytes], buffer[tensor.nbytes :]
            if tensor.numel():
                _core.copy(tensor.view(-1).view(torch.uint8), part, threads)
            self._tensors[name] = part.view(tensor.dtype).view(tensor.shape)

    def tensors(self) -> dict[str, Tensor]:
        return self._tensors


def _largest(unit_bytes: Iterable[int], units: int) -> list[int]:
    return sorted(unit_bytes, reverse=True)[:units]
