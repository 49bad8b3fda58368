"""One block's forward, remembered until its backward: kept whole, in part, or recomputed from its input.

Autograd records every forward; what it saves is held by hooks:

- *Kept*: tensors as they are, so that backward starts at once. Weights are saved by their place in the slot, never by
  value: by the time of backward another layer may lie in the slot that forward read, and the layer in another.
- *Recomputed*: only how many tensors there were. Backward runs the block again, up to the last tensor that is needed,
  which in most families leaves out the last and one of the largest matmuls.
- *With outputs*: recomputed, but the results of matrix products and attention are held and not computed again.

All run the same kernels on the same numbers: same bits. `torch.utils.checkpoint` does what `Recomputed` does, and
costs the host twice the time a block.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from slideformer.engine.outputs import Place, Recorder, Repeater, Results, found_in, memory_of, placed
from slideformer.errors import DoesNotFit
from slideformer.memory.gradients import Accumulator
from slideformer.memory.host_outputs import aligned, starts

Level = Literal["recompute", "outputs", "all"]  # of what forward gives: nothing is kept, expensive outputs, everything
Weights = dict[str, Tensor]
Forward = Callable[..., Tensor]  # (weights, *inputs) -> y


class Tape:
    """Runs a block once forward and once backward.

    Args:
        forward: (weights, *inputs) -> y, the same function of the same numbers whenever it is called.
        weights: parameter name -> view of a slot, the trained ones first.
        inputs: the block's input [b, t, hidden], and what else of its call has a gradient.
        level: what is held of forward; the rest is recomputed.
        frozen: names of weights that need no gradient.
        needs_dx: whether anything below the block is trained: then the inputs have a gradient.
    """

    def __init__(
        self,
        forward: Forward,
        weights: Weights,
        inputs: Sequence[Tensor],
        level: Level,
        frozen: Collection[str] = (),
        needs_dx: bool = True,
    ):
        leaves = as_leaves(weights, frozen)
        # Autograd holds the leaves of its graph; these have the inputs' shapes and no memory.
        stand_ins = [x.new_empty(()).expand(x.shape).requires_grad_(needs_dx) for x in inputs]
        self._saved = self._holder(level, forward, weights, frozen, needs_dx)
        hooks = saved_tensors_hooks(self._saved.pack, self._saved.unpack)
        with torch.enable_grad(), hooks, self._saved.recording():
            y = forward(leaves, *map(substitute, stand_ins, inputs))
        self._saved.recorded()
        self._inputs = len(inputs) if needs_dx else 0
        self._leaves: list[Tensor] = [leaf for leaf in (*stand_ins, *leaves.values()) if leaf.requires_grad]
        self._end: GradientEdge | None = get_gradient_edge(y)
        self._y: Tensor | None = y.detach()

    @staticmethod
    def _holder(
        level: Level, forward: Forward, weights: Weights, frozen: Collection[str], needs_dx: bool
    ) -> "Kept | Recomputed":
        if level == "all":
            return Kept(storage_of(weights))
        return (RecomputedWithOutputs if level == "outputs" else Recomputed)(forward, frozen, needs_dx)

    @property
    def output_bytes(self) -> int:
        """Of expensive outputs that are held."""
        return self._saved.output_bytes

    def move_outputs(self, memory: Tensor) -> None:
        """Copy the expensive outputs to `memory` (uint8), one behind the other, and hold them no longer; `give_outputs`
        is to follow before backward.

        Raises:
            DoesNotFit: they are more.
        """
        self._with_outputs.move(memory)

    @property
    def moved_bytes(self) -> int:
        """By `move_outputs`."""
        return self._with_outputs.moved_bytes

    def give_outputs(self, memory: Tensor) -> None:
        """What was moved is in `memory` (uint8)."""
        self._with_outputs.give(memory)

    @property
    def _with_outputs(self) -> "RecomputedWithOutputs":
        assert isinstance(self._saved, RecomputedWithOutputs)
        return self._saved

    def take_output(self) -> Tensor:
        """y, once: the tape does not hold it."""
        y, self._y = self._y, None
        assert y is not None
        return y

    def backward(
        self, weights: Weights, inputs: Sequence[Tensor], dy: Tensor, into: Accumulator
    ) -> list[Tensor | None]:
        """The inputs' gradients, if they are needed; adds the trained weights' gradients to `into`. Once.

        Args:
            weights: the same weights as in forward, in whichever slot they are now.
            inputs: the block's inputs again; not read where everything was kept.
        """
        assert self._end is not None
        self._saved.bind(weights, inputs)
        gradients = gradients_of([self._end], self._leaves, [dy])
        # The graph holds the hooks: let go of it here, or memory waits for the garbage collector.
        self._end, self._leaves = None, []
        self._saved.unbind()
        into.add(gradients[self._inputs :])
        return gradients[: self._inputs]


class Kept:
    """Saved tensors as they are, but weights by their place."""

    output_bytes = 0

    def __init__(self, slot: torch.UntypedStorage):
        self._address = slot.data_ptr()
        self._slot: torch.UntypedStorage | None = None

    def recording(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def recorded(self) -> None:
        pass

    def bind(self, weights: Weights, inputs: Sequence[Tensor]) -> None:
        self._slot = storage_of(weights)

    def unbind(self) -> None:
        self._slot = None

    def pack(self, tensor: Tensor) -> Tensor | Place:
        if tensor.untyped_storage().data_ptr() != self._address:
            return tensor.detach()  # a node that keeps its own output, with its history, would never be freed
        return Place(int(tensor.storage_offset()), tensor.size(), tensor.stride(), tensor.dtype)

    def unpack(self, saved: Tensor | Place) -> Tensor:
        """A tensor as it is, or from the slot that holds the layer now."""
        if isinstance(saved, Tensor):
            return saved
        assert self._slot is not None
        return saved.within(self._slot)


class Recomputed:
    """Saved tensors by number; the first that is asked for brings all of them back."""

    output_bytes = 0

    def __init__(self, forward: Forward, frozen: Collection[str], needs_dx: bool):
        self._forward, self._frozen, self._needs_dx = forward, frozen, needs_dx
        self._count = 0
        self._again: list[Tensor | None] = []
        self._bound: tuple[Weights, list[Tensor]] | None = None

    def recording(self) -> AbstractContextManager[Any]:
        """Forward runs within."""
        return nullcontext()

    def recorded(self) -> None:
        """Forward is over."""

    def repeating(self) -> AbstractContextManager[Any]:
        """The recomputation runs within."""
        return nullcontext()

    def bind(self, weights: Weights, inputs: Sequence[Tensor]) -> None:
        again = [x.detach().requires_grad_(self._needs_dx) for x in inputs]
        self._bound = as_leaves(weights, self._frozen), again

    def unbind(self) -> None:
        self._bound, self._again = None, []

    def pack(self, tensor: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def unpack(self, number: int) -> Tensor:
        if not self._again:
            self._recompute()
        tensor, self._again[number] = self._again[number], None  # each is asked for once, and its memory is needed
        assert tensor is not None
        return tensor

    def _recompute(self) -> None:
        assert self._bound is not None
        try:
            with torch.enable_grad(), saved_tensors_hooks(self._save_again, refuse), self.repeating():
                weights, inputs = self._bound
                self._forward(weights, *inputs)
        except LastTensorSaved:
            pass
        if len(self._again) != self._count:
            raise RuntimeError(f"a block saved {self._count} tensors and {len(self._again)} when it was recomputed")

    def _save_again(self, tensor: Tensor) -> None:
        self._again.append(tensor.detach())
        if len(self._again) == self._count:
            raise LastTensorSaved


class RecomputedWithOutputs(Recomputed):
    """As `Recomputed`, but no expensive operator runs again."""

    def __init__(self, forward: Forward, frozen: Collection[str], needs_dx: bool):
        super().__init__(forward, frozen, needs_dx)
        self._recorder: Recorder | None = None
        self._outputs: deque[Results] = deque()
        self.moved_bytes = 0

    @property
    def output_bytes(self) -> int:
        return sum(results.nbytes for results in self._outputs)

    def move(self, memory: Tensor) -> None:
        pieces = memory_of(self._outputs)
        needed = sum(aligned(piece.numel()) for piece in pieces)
        if needed > memory.numel():
            raise DoesNotFit(
                f"a block gave {needed:,} bytes of expensive outputs, and there is room for {memory.numel():,}",
                "set host_outputs: 0",
            )
        for piece, start in zip(pieces, starts(pieces), strict=True):
            memory[start : start + piece.numel()].copy_(piece)
        self._outputs, self.moved_bytes = placed(self._outputs, pieces), needed

    def give(self, memory: Tensor) -> None:
        self._outputs = found_in(self._outputs, memory)

    def recording(self) -> AbstractContextManager[Any]:
        self._recorder = Recorder(lambda: self._count)
        return self._recorder

    def recorded(self) -> None:
        assert self._recorder is not None
        self._outputs, self._recorder = self._recorder.take(), None  # it knows this object, which is a cycle

    def repeating(self) -> AbstractContextManager[Any]:
        return Repeater(self._outputs)


class LastTensorSaved(Exception):
    """Nothing that the recomputation still had to do is needed."""


def gradients_of(
    outputs: Sequence[Tensor] | Sequence[GradientEdge],
    inputs: Sequence[Tensor],
    d_outputs: Sequence[Tensor | None] | None,
) -> list[Tensor | None]:
    """`torch.autograd.grad`, without its thread for the device.

    With hooks and kernels in Python that thread and this one hand the interpreter to each other all the time.
    """
    with torch.autograd.set_multithreading_enabled(False):
        return list(torch.autograd.grad(outputs, inputs, d_outputs, allow_unused=True))


class Substitute(torch.autograd.Function):
    """The value of one tensor with the gradient going to another: (stand-in, value) -> value."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def substitute(stand_in: Tensor, value: Tensor) -> Tensor:
    return Substitute.apply(stand_in, value)  # pyright: ignore[reportReturnType]


def refuse(_: Any) -> Tensor:
    raise RuntimeError("the graph of a recomputation is not for backward")


def as_leaves(weights: Weights, frozen: Collection[str] = ()) -> Weights:
    """The same memory as fresh leaves of autograd, those that are frozen without a gradient."""
    return {name: view.detach().requires_grad_(name not in frozen) for name, view in weights.items()}


def storage_of(weights: Weights) -> torch.UntypedStorage:
    """The memory of the slot that holds them all."""
    return next(iter(weights.values())).untyped_storage()
