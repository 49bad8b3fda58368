"""Records what every lane runs and when, from outside: the engine is handed other lanes and has no line for it.

As in `slideformer.lanes.measured`, timing events around each piece of work are read after the last step. Pieces are
named by the function that a lane is handed, and by its arguments where they tell the layer; what follows a block's
backward, by the order in which it was submitted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from slideformer.bench.spans import ADAMW, COMPUTE, D2H, H2D, UPDATE, Span
from slideformer.engine.updates import Updates
from slideformer.lanes.lanes import Fence, Lane, Lanes
from slideformer.lanes.measured import Mark, mark_of
from slideformer.optim.adamw import AdamWStep

NAMES: dict[str, Callable[[tuple[Any, ...]], str]] = {  # by function; the rest are called what the function is called
    "block_forward": lambda args: f"forward {args[1]}",
    "block_recorded": lambda args: f"forward {args[1]}",
    "block_backward": lambda args: f"backward {args[1]}",
    "head_loss_and_gradient": lambda args: "head",
    "add_head_loss": lambda args: "head",
    "copy_shell": lambda args: "fetch shell",
    "copy_async": lambda args: "copy" if args[0].ndim else "copy norm",
}


def name_of(lane: str, work: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """What a person calls it: "forward 12", "fetch 13", "head"."""
    function = getattr(work, "__name__", type(work).__name__)
    if function in NAMES:
        return NAMES[function](args)
    if lane == H2D and args and isinstance(args[0], int):  # the window's copy of a layer
        return f"fetch {args[0]}"
    if lane == H2D and len(args) == 1:  # the head's, which has no number
        return "fetch head"
    return function


FOLLOWING = {  # a block's backward, in this order, each if there is one: its name by lane and function
    (COMPUTE, "GradientFlush"): "flush",
    (D2H, "copy"): "send",
    (COMPUTE, "partial"): "update",  # of a state on the GPU
}


@dataclass(frozen=True)
class Piece:
    """Work in a lane, between two marks in its queue."""

    lane: str
    name: str
    before: Mark
    after: Mark


def named_by_block(pieces: Sequence[Piece]) -> list[Piece]:
    """The same pieces, in the order of their submission; what belongs to the backward before it has its block's number:
    "flush 12", "send 12", "update 12"."""
    named, block = [], None
    for piece in pieces:
        what, _, number = piece.name.partition(" ")
        following = FOLLOWING.get((piece.lane, piece.name))
        if block is not None and following is not None:
            piece = replace(piece, name=f"{following} {block}")
        elif piece.lane == COMPUTE:
            block = number if what == "backward" else None
        named.append(piece)
    return named


class RecordedLane:
    """A lane that appends each piece of its work to `pieces`."""

    def __init__(self, name: str, lane: Lane, pieces: list[Piece]):
        self._name, self._lane, self._pieces = name, lane, pieces
        self._mark = mark_of(lane)

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        before = self._mark()
        result = self._lane.run(work, *args)
        self._pieces.append(Piece(self._name, name_of(self._name, work, args), before, self._mark()))
        return result

    def record(self) -> Fence:
        return self._lane.record()

    def wait(self, fence: Fence) -> None:
        self._lane.wait(fence)


class Recording:
    """What `lanes` ran since `begin`."""

    def __init__(self, lanes: Lanes):
        self._pieces: list[Piece] = []
        self._updates: list[Span] = []
        self._device, self._mark = lanes.device, mark_of(lanes.compute)
        kinds = {COMPUTE: lanes.compute, H2D: lanes.h2d, D2H: lanes.d2h, UPDATE: lanes.update}
        self.lanes = replace(lanes, **{name: RecordedLane(name, lane, self._pieces) for name, lane in kinds.items()})
        self.begin()

    def begin(self) -> None:
        """Forget what was recorded. Nothing may run: the two clocks are set to zero together."""
        self._pieces.clear()
        self._updates.clear()
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        self._zero, self._zero_seconds = self._mark(), time.perf_counter()

    def watch(self, updates: Updates) -> None:
        """Record the worker's updates, too."""
        submit = updates.submit

        def recorded(step: Any, unit: str, next_use: int, gradients: list[Any], apply: Any) -> None:
            submit(step, unit, next_use, gradients, apply and self._timed(unit, apply))

        updates.submit = recorded

    def spans(self) -> list[Span]:
        """Of all that has been submitted; call it once that has run."""
        pieces = named_by_block(self._pieces)
        return sorted([*map(self._span, pieces), *self._updates], key=lambda span: span.begin)

    def _span(self, piece: Piece) -> Span:
        begin, end = (self._zero.elapsed_time(mark) / 1e3 for mark in (piece.before, piece.after))
        return Span(piece.lane, piece.name, begin, end)

    def _timed(self, unit: str, apply: Callable[[AdamWStep], None]) -> Callable[[AdamWStep], None]:
        def timed(hyper: AdamWStep) -> None:
            begin = time.perf_counter()
            apply(hyper)
            begin, end = begin - self._zero_seconds, time.perf_counter() - self._zero_seconds
            self._updates.append(Span(ADAMW, f"update {unit}", begin, end))

        return timed
