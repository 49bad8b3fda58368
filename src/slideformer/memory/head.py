"""The LM head's weight on the device: there only while the loss is computed, and its gradient with it."""

from collections.abc import Callable

import torch
from torch import Tensor

from slideformer.lanes.lanes import Fence, Lanes
from slideformer.memory.device_state import DeviceState


class HeadWeight:
    """A transient device copy of the head's weight [vocabulary, width].

    Args:
        numel: elements of the weight in its flat layout (padded), as `copy_weights` copies them.
        fresh, wait_fresh: whether, or until, the host copy is up to date.
        copy_weights: copies the flat weight from the host.
    """

    def __init__(
        self,
        lanes: Lanes,
        shape: tuple[int, int],
        numel: int,
        dtype: torch.dtype,
        fresh: Callable[[], bool],
        wait_fresh: Callable[[], None],
        copy_weights: Callable[[Tensor], None],
    ):
        self._lanes = lanes
        self._shape, self._numel, self._dtype = shape, numel, dtype
        self._fresh, self._wait_fresh, self._copy_weights = fresh, wait_fresh, copy_weights
        self._flat: Tensor | None = None
        self._ready: Fence | None = None

    @staticmethod
    def bytes_needed(numel: int, dtype: torch.dtype) -> int:
        """With the fp32 gradient that lives beside it."""
        return numel * (dtype.itemsize + 4)

    def fetch(self) -> None:
        """Start the copy to the device if the weight is up to date; else `weight` will."""
        if self._flat is None and self._fresh():
            self._submit()

    def weight(self) -> Tensor:
        """The weight, for computation submitted from here until `release`."""
        if self._flat is None:
            self._wait_fresh()
            self._submit()
        assert self._flat is not None and self._ready is not None
        self._lanes.compute.wait(self._ready)
        return self._flat[: self._shape[0] * self._shape[1]].view(self._shape)

    def new_gradient(self) -> Tensor:
        """A zeroed fp32 gradient [vocabulary, width]."""
        return zeroed(self._lanes, self._shape)

    def release(self) -> None:
        """Computation submitted so far was the last to read the weight; its memory is free for what follows."""
        self._flat = self._ready = None

    def _submit(self) -> None:
        self._flat = self._lanes.empty((self._numel,), self._dtype)
        self._lanes.h2d.wait(self._lanes.compute.record())  # the memory may have been computation's until now
        self._lanes.h2d.run(self._copy_weights, self._flat)
        self._ready = self._lanes.h2d.record()


class ResidentHead:
    """The head's weight where its state is on the device: used in place.

    Its update is submitted before that of the shell, which each step begins by waiting for.

    Args:
        shape: [vocabulary, width].
    """

    def __init__(self, lanes: Lanes, shape: tuple[int, int], state: DeviceState):
        self._lanes, self._shape, self._state = lanes, shape, state

    def fetch(self) -> None:
        pass

    def weight(self) -> Tensor:
        """The weight, for computation submitted from here."""
        self._state.wait_updated(self._lanes.compute)
        return self._state.hi[: self._shape[0] * self._shape[1]].view(self._shape)

    def new_gradient(self) -> Tensor:
        """A zeroed fp32 gradient [vocabulary, width]."""
        return zeroed(self._lanes, self._shape)

    def release(self) -> None:
        pass


def zeroed(lanes: Lanes, shape: tuple[int, int]) -> Tensor:
    gradient = lanes.empty(shape, torch.float32)
    lanes.compute.run(gradient.zero_)
    return gradient
