"""Gradients on their way out: accumulated on the device, flushed to host buffers, handed to the optimizer."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slideformer.kernels.accumulate import accumulate
from slideformer.kernels.gradient_flush import GradientFlush
from slideformer.lanes.lanes import Fence, Lanes
from slideformer.layout import FlatLayout
from slideformer.memory.host import HostAllocator


@dataclass(eq=False)
class HostGradient:
    """A flushed gradient, in host memory unless its layer is resident.

    Attributes:
        flat: [numel] in the dtype that crosses the link; valid once `landed` is done.
        sum_of_squares: float32 scalar on the host; valid once `landed` is done.
        device_squares: the same on the device, for the compute lane, until the unit's next gradient.
        release: gives the buffer back for the next gradient.
        reached: names of the parameters that it is of; the others' gradient is not zero but none. Valid once `landed`
            is done.
        copied: behind it `flat` can be read; None: by what the compute lane is given next.
    """

    flat: Tensor
    sum_of_squares: Tensor
    device_squares: Tensor
    landed: Fence
    release: Callable[[], None]
    reached: Collection[str] = ()
    copied: Fence | None = None


class Accumulator:
    """The gradient of one layer on the device while its micro-batches pass.

    One micro-batch: gradients are copied into the outgoing buffer as they are. More: they are summed in fp32.

    Args:
        flat: [trained_numel] of the layout.

    Attributes:
        reached: names of the parameters that had a gradient so far.
    """

    def __init__(self, layout: FlatLayout, flat: Tensor):
        self.layout = layout
        self.flat = flat
        self.reached: set[str] = set()
        self._names = [field.name for field in layout.trained_fields]
        self._views = layout.gradient_views(flat)
        self._padding = layout.padding_views(flat)
        self._first = True

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add one micro-batch's gradients, those of the trained parameters in the layout's order; None is none."""
        if self._first:
            for padding in self._padding:
                padding.zero_()  # another layout's gradient may have lain there
        for name, view, gradient in zip(self._names, self._views, gradients, strict=True):
            if gradient is not None:
                self.reached.add(name)
                accumulate(view, gradient, self._first)
            elif self._first:
                view.zero_()
        self._first = False


class GradientRing:
    """Device staging and host buffers for outgoing gradients, block-sized.

    Args:
        numel: elements of the largest block.
        host_slots: gradients that may wait on the host for their update at one time.
        dtype: what crosses the link: bfloat16, or float32 when computing in fp32.
        accumulate: whether a step has more than one micro-batch.
        units: number of layers, for their sums of squares.
        wait_until: blocks until a condition holds (the worker's), while host slots are taken.
    """

    STAGING = 2  # one fills while one leaves

    def __init__(
        self,
        lanes: Lanes,
        allocator: HostAllocator,
        numel: int,
        host_slots: int,
        dtype: torch.dtype,
        accumulate: bool,
        units: int,
        wait_until: Callable[[Callable[[], bool]], None],
    ):
        self._lanes = lanes
        self._wait_until = wait_until
        self.dtype = dtype
        self._staging = [torch.zeros(numel, dtype=dtype, device=lanes.device) for _ in range(self.STAGING)]
        self._left: list[Fence | None] = [None] * self.STAGING
        self._next = 0
        self._sum = torch.zeros(numel, dtype=torch.float32, device=lanes.device) if accumulate else None
        self._flush = GradientFlush(lanes.device)
        self._device_squares = torch.zeros(units, dtype=torch.float32, device=lanes.device)
        self._host_squares = allocator.empty("gradient norms", (units,), torch.float32, pinned=True)
        self._free = [allocator.empty("gradients", (numel,), dtype, pinned=True) for _ in range(host_slots)]

    @staticmethod
    def numel_for(layouts: Sequence[FlatLayout]) -> int:
        """Elements of a buffer: the largest trained block's; where none is, a block's, for what is sent in pieces."""
        return max(layout.trained_numel for layout in layouts) or max(layout.numel for layout in layouts)

    @staticmethod
    def device_bytes_needed(numel: int, dtype: torch.dtype, accumulate: bool) -> int:
        return numel * (GradientRing.STAGING * dtype.itemsize + (4 if accumulate else 0))

    @staticmethod
    def host_bytes_needed(numel: int, host_slots: int, dtype: torch.dtype) -> int:
        return numel * host_slots * dtype.itemsize

    def open(self, layout: FlatLayout) -> Accumulator:
        """Where the gradients of the next layer go; one layer at a time."""
        if self._sum is not None:
            return Accumulator(layout, self._sum[: layout.trained_numel])
        return Accumulator(layout, self._next_staging()[: layout.trained_numel])

    def flush(self, unit: int, accumulator: Accumulator) -> HostGradient:
        """Send a layer's gradient to a host slot, with its sum of squares; blocks while all slots wait for updates."""
        numel = accumulator.flat.numel()
        source = accumulator.flat
        staged = source if self._sum is None else self._next_staging()[:numel]
        self._lanes.compute.run(self._flush, source, staged, self._device_squares[unit])
        self._wait_until(lambda: len(self._free) > 0)
        slot = self._free.pop()
        self.send(staged, slot[:numel])
        return self.landing(unit, slot[:numel], lambda: self._free.append(slot), accumulator.reached)

    def hold(self, unit: int, accumulator: Accumulator, buffer: Tensor | None) -> HostGradient:
        """As `flush`, of a resident layer: leave it on the device, in `buffer` [trained_numel], or where there is none
        in staging, for what the compute lane is given next."""
        source = held = accumulator.flat
        if buffer is not None or self._sum is not None:
            held = self._next_staging()[: source.numel()] if buffer is None else buffer
        self._lanes.compute.run(self._flush, source, held, self._device_squares[unit])
        self._lanes.d2h.wait(self._lanes.compute.record())
        return replace(self.landing(unit, held, lambda: None, accumulator.reached), copied=None)

    def flush_into(
        self, unit: int, gradient: Tensor, destination: Tensor, reached: Collection[str] = ()
    ) -> HostGradient:
        """Send a gradient of any size [n] from the device to `destination` [n] on the host, piece by piece."""
        self.begin_pieces(unit)
        self.send_pieces(unit, gradient, destination)
        return self.landing(unit, destination, lambda: None, reached)

    def begin_pieces(self, unit: int) -> None:
        """The next gradient of a unit starts, which `send_pieces` sends and `landing` ends."""
        self._lanes.compute.run(self._device_squares[unit].zero_)

    def send_pieces(self, unit: int, gradient: Tensor, destination: Tensor) -> None:
        """Send a part of a gradient [n] to `destination` [n], piece by piece."""
        size = self._staging[0].numel()
        for start in range(0, gradient.numel(), size):
            piece = gradient[start : start + size]
            staged = self._next_staging()[: piece.numel()]
            self._lanes.compute.run(self._flush, piece, staged, self._device_squares[unit], True)
            self.send(staged, destination[start : start + size])

    def send(self, staged: Tensor, destination: Tensor) -> None:
        self._lanes.d2h.wait(self._lanes.compute.record())
        self._lanes.d2h.run(copy_async, staged, destination)
        self._left[self._next] = self._lanes.d2h.record()

    def landing(
        self, unit: int, destination: Tensor, release: Callable[[], None], reached: Collection[str]
    ) -> HostGradient:
        on_device, squares = self._device_squares[unit], self._host_squares[unit]
        self._lanes.d2h.run(copy_async, on_device, squares)
        landed = self._lanes.d2h.record()
        return HostGradient(destination, squares, on_device, landed, release, reached, copied=landed)

    def _next_staging(self) -> Tensor:
        self._next = (self._next + 1) % self.STAGING
        left = self._left[self._next]
        if left is not None:
            self._lanes.compute.wait(left)
        return self._staging[self._next]


def copy_async(source: Tensor, destination: Tensor) -> None:
    destination.copy_(source, non_blocking=True)
