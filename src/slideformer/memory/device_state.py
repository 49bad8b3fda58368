"""Durable layer state in the device's memory: its weights are never fetched, and its updates run there.

The planes and moments are those of host memory, and so are the update's bits: where a layer's state is decides nothing.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from slideformer.lanes.lanes import Fence, Lane, Lanes
from slideformer.layout import FlatLayout
from slideformer.memory.disk_state import PartsOfABuffer, Places
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.step_counts import StepCounts
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.device_adam import DeviceAdam
from slideformer.optim.planes import join_reference
from slideformer.optim.rounding import Rounding


class WayOut:
    """Host memory through which states on the device are saved and loaded, one at a time.

    Args:
        state_bytes: of each of them.
        threads: that convert weights while loading.
    """

    def __init__(self, allocator: HostAllocator, state_bytes: Iterable[int], threads: int | None = None):
        size = self.bytes_needed(state_bytes)
        self.buffer = allocator.empty("way out of the device", (size,), torch.uint8, pinned=True)
        self.threads = threads
        self.lock = threading.Lock()

    @staticmethod
    def bytes_needed(state_bytes: Iterable[int]) -> int:
        return max(state_bytes, default=0)


class DeviceState:
    """The durable state of one layer on the device, in the form of `LayerState`.

    Attributes:
        hi: bfloat16 [numel]: the weights that computation reads, in place.
        lo, exp_avg, exp_avg_sq: as in `LayerState`.
        counts: which steps count for its parameters.
        updated: behind it the weights are those of the last update that was submitted; None before the first.
    """

    def __init__(
        self,
        name: str,
        layout: FlatLayout,
        lanes: Lanes,
        way_out: WayOut,
        moment_dtype: torch.dtype = torch.float32,
        rounding: Rounding | None = None,
    ):
        self.name, self.layout = name, layout
        self._lanes, self._way_out = lanes, way_out
        self._moment_dtype, self._rounding = moment_dtype, rounding
        trained, device = layout.trained_numel, lanes.device
        self.hi = torch.zeros(layout.numel, dtype=torch.bfloat16, device=device)
        self.lo = torch.zeros(layout.numel, dtype=torch.int16, device=device)
        self.exp_avg, self.exp_avg_sq = (torch.zeros(trained, dtype=moment_dtype, device=device) for _ in range(2))
        self.counts = StepCounts(layout)
        self.updated: Fence | None = None
        self.adam = DeviceAdam(
            self.hi[:trained], self.lo[:trained], self.exp_avg, self.exp_avg_sq, layout.decay_spans(), rounding
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything durable by name, on the device."""
        return {"hi": self.hi, "lo": self.lo, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def change(self, lane: Lane, update: Callable[..., Any], *args: Any) -> None:
        """Submit an update to a lane; computation with the weights waits for it."""
        lane.run(update, *args)
        self.updated = lane.record()

    def wait_updated(self, lane: Lane) -> None:
        """What the lane runs from here on finds the weights of the last update."""
        if self.updated is not None:
            lane.wait(self.updated)

    def apply(self, gradient: Tensor, reached: Collection[str], hyper: AdamWStep, gates: Sequence[Tensor]) -> None:
        """One AdamW step, in whichever lane runs this.

        Args:
            gradient: [trained_numel] on the device, that reached the parameters `reached`.
            gates: scalars on the device; unless all are finite, nothing changes.
        """
        for spans, counted in self.counts.due(reached, hyper):
            self.adam.step_spans(spans, gradient, counted, gate=one_gate(gates))

    @contextmanager
    def opened(self, change: bool) -> Iterator[LayerState]:
        """A copy of the whole state in host memory; with `change`, what is changed within is copied back."""
        with self._way_out.lock:
            memory = PartsOfABuffer(Places(), self._way_out.buffer)
            threads = self._way_out.threads
            copy = LayerState(self.name, self.layout, memory, False, threads, self._moment_dtype, self._rounding)
            copy.counts = self.counts
            there, here = copy.tensors().values(), self.tensors().values()
            lane = self._lanes.update  # not compute's, where this would wait for all that has been submitted
            self.wait_updated(lane)
            lane.run(copy_all, list(zip(here, there, strict=True)))
            lane.record().wait()
            yield copy
            if change:
                self.change(lane, copy_all, list(zip(there, here, strict=True)))
                lane.record().wait()  # the buffer is the next state's

    def opened_weights(self, dtype: torch.dtype) -> Any:
        """As `opened`, of which only the weights are to be read."""
        return self.opened(change=False)

    def copy_weights(self, out: Tensor) -> None:
        """Copy the weights to `out` [numel] on the device, in its dtype (bf16 or fp32)."""
        out.copy_(self.hi) if out.dtype == torch.bfloat16 else join_reference(self.hi, self.lo, out)


def one_gate(gates: Sequence[Tensor]) -> Tensor | None:
    """A scalar that is finite if all of them are."""
    if len(gates) < 2:
        return gates[0] if gates else None
    return torch.stack([gate * 0 for gate in gates]).sum()


def copy_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy each pair's first to its second."""
    for source, destination in pairs:
        destination.copy_(source, non_blocking=True)


def units_on_device(layouts: Mapping[str, FlatLayout], blocks: Sequence[str], count: int, ends: bool) -> list[str]:
    """The first `count` blocks, which backward updates last and the next forward needs first; with `ends`, all trained
    units that are no blocks."""
    others = [unit for unit, layout in layouts.items() if unit not in blocks and layout.trained_numel]
    return [*blocks[:count], *(others if ends else [])]
