"""The sliding window: a few device slots through which the layers' weights pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from slideformer.layout import FlatLayout
from slideformer.memory.device_state import DeviceState
from slideformer.streams import Fence, Lanes

EMPTY = -1


class LayerNotFetched(RuntimeError):
    """A layer was used without `fetch`: an error of the engine, never of its user."""


@dataclass(eq=False)
class Slot:
    """Device memory for one layer's weights, and which layer it holds."""

    flat: Tensor
    layer: int = EMPTY
    ready: Fence | None = None  # the layer's weights have arrived; None until the copy is submitted
    free: Fence | None = None  # computation that reads the slot is over
    held: bool = False  # fetched and not yet released
    views: dict[int, dict[str, Tensor]] = field(default_factory=dict)


class ReadAhead(Protocol):
    """Brings layers' weights to where `copy_of` finds them, if they are not always there."""

    def expect(self, layers: Sequence[int]) -> None:
        """These will be copied, in this order; forget what was expected before."""
        ...

    def skip(self, i: int) -> None:
        """Layer i was to be copied next, and need not be."""
        ...

    def sent(self, i: int, fence: Fence) -> None:
        """Behind the fence layer i has been copied."""
        ...

    def forget(self, i: int) -> None:
        """Layer i is about to change."""
        ...


class AlwaysThere:
    """In place of a `ReadAhead` where all weights are in memory."""

    def expect(self, layers: Sequence[int]) -> None:
        pass

    def skip(self, i: int) -> None:
        pass

    def sent(self, i: int, fence: Fence) -> None:
        pass

    def forget(self, i: int) -> None:
        pass


class LayerWindow:
    """Weights of layers on the device, `depth` at a time.

    `fetch` may be called early and again; `layer` gives the weights to computation submitted next; `release` says that
    no further computation will read them. A released layer stays until its slot is needed (so the last layers of
    forward are there when backward starts) or `invalidate` says that its weights have changed.

    Args:
        layouts: one per layer; a slot has the size of the largest.
        depth: number of slots, at least 1.
        fresh: whether layer i's weights on the host are up to date now.
        wait_fresh: blocks until they are.
        copy_of: of layer i, gives what copies its weights, from where they are on the host now: called with i, which
            names the copy to whoever records lanes, and a tensor [numel].
        resident: layers whose weights are on the device for good; they are used in place and need no slot.
        ahead: told what will be copied, and what was.
    """

    def __init__(
        self,
        lanes: Lanes,
        layouts: Sequence[FlatLayout],
        depth: int,
        dtype: torch.dtype,
        fresh: Callable[[int], bool],
        wait_fresh: Callable[[int], None],
        copy_of: Callable[[int], Callable[[int, Tensor], None]],
        resident: Mapping[int, DeviceState] | None = None,
        ahead: ReadAhead | None = None,
    ):
        self._lanes, self._ahead = lanes, ahead or AlwaysThere()
        self._layouts = layouts
        self._fresh, self._wait_fresh, self._copy_of = fresh, wait_fresh, copy_of
        self._resident = dict(resident or {})
        self._resident_views = {i: state.layout.views(state.hi) for i, state in self._resident.items()}
        numel = slot_numel([layout for i, layout in enumerate(layouts) if i not in self._resident])
        self.depth = min(depth, len(layouts))
        # Ordered by when they were released: the first free slot is the one that was let go longest ago.
        self._slots = [Slot(torch.empty(numel, dtype=dtype, device=lanes.device)) for _ in range(self.depth)]
        self._waiting: list[Slot] = []  # fetched and not submitted, in the order in which they are used

    @staticmethod
    def bytes_needed(layouts: Sequence[FlatLayout], depth: int, dtype: torch.dtype) -> int:
        """With `layouts` those that are not resident."""
        return min(depth, len(layouts)) * slot_numel(layouts) * dtype.itemsize

    def expect(self, layers: Sequence[int]) -> None:
        """These will be fetched next, in this order."""
        waiting = [slot.layer for slot in self._waiting]
        self._ahead.expect([*waiting, *(i for i in layers if i not in self._resident)])

    def fetch(self, i: int) -> None:
        """Bring layer i's weights to the device, or keep them there; out of range is nothing to do."""
        if not 0 <= i < len(self._layouts) or i in self._resident:
            return
        slot = self._find(i) or self._evict()
        if slot.layer != i:
            slot.layer, slot.ready = i, None
            self._waiting.append(slot)
        elif not slot.held:
            self._ahead.skip(i)
        slot.held = True
        self._submit_fresh()

    def layer(self, i: int) -> dict[str, Tensor]:
        """The weights of layer i by name, for computation submitted from here until `release(i)`.

        Raises:
            LayerNotFetched: `fetch(i)` was not called since it was last released or invalidated.
        """
        if i in self._resident:
            return self._in_place(i)
        slot = self._find(i)
        if slot is None or not slot.held:
            raise LayerNotFetched(f"layer {i} was used but not fetched; the window holds {self.holds()}")
        if slot.ready is None:
            self._wait_fresh(i)
            self._waiting.remove(slot)
            self._submit(slot)
            self._submit_fresh()
        assert slot.ready is not None
        self._lanes.compute.wait(slot.ready)
        if i not in slot.views:
            slot.views[i] = self._layouts[i].views(slot.flat)
        return slot.views[i]

    def release(self, i: int) -> None:
        """Computation submitted so far was the last to read layer i."""
        if i in self._resident:
            return
        slot = self._find(i)
        if slot is None or not slot.held:
            raise LayerNotFetched(f"layer {i} was released but not fetched; the window holds {self.holds()}")
        if slot in self._waiting:  # nothing of it was copied
            self._waiting.remove(slot)
            slot.layer = EMPTY
        slot.free, slot.held = self._lanes.compute.record(), False
        self._slots.remove(slot)
        self._slots.append(slot)
        self._submit_fresh()

    def invalidate(self, i: int) -> None:
        """Layer i's weights are about to change: what the window holds of them is no longer to be used."""
        self._ahead.forget(i)
        slot = self._find(i)
        if slot is not None:
            assert not slot.held, f"layer {i} changes while it is held"
            slot.layer = EMPTY

    def holds(self) -> list[int]:
        """Layers now in a slot."""
        return sorted(slot.layer for slot in self._slots if slot.layer != EMPTY)

    def _in_place(self, i: int) -> dict[str, Tensor]:
        self._wait_fresh(i)
        self._resident[i].wait_updated(self._lanes.compute)
        return self._resident_views[i]

    def _find(self, i: int) -> Slot | None:
        return next((slot for slot in self._slots if slot.layer == i), None)

    def _evict(self) -> Slot:
        free = [slot for slot in self._slots if not slot.held]
        if not free:
            raise LayerNotFetched(f"all {self.depth} slots are held (layers {self.holds()}): a layer was not released")
        return next((slot for slot in free if slot.layer == EMPTY), free[0])

    def _submit_fresh(self) -> None:
        """In the order of use: a copy may have to wait for its slot, and those behind it on the lane wait with it."""
        while self._waiting and self._fresh(self._waiting[0].layer):
            self._submit(self._waiting.pop(0))

    def _submit(self, slot: Slot) -> None:
        if slot.free is not None:
            self._lanes.h2d.wait(slot.free)
        i = slot.layer
        self._lanes.h2d.run(self._copy_of(i), i, slot.flat[: self._layouts[i].numel])
        slot.ready = self._lanes.h2d.record()
        self._ahead.sent(i, slot.ready)


def slot_numel(layouts: Sequence[FlatLayout]) -> int:
    """Elements of a slot that holds any of these layers."""
    return max((layout.numel for layout in layouts), default=0)
