"""Faults on demand: one chosen call of one named function raises, before or after it has done its work."""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ENOSPC
from functools import wraps
from typing import Any

import pytest
import torch

from slideformer.engine import compute
from slideformer.engine.sampling import Sampler
from slideformer.engine.updates import Updates
from slideformer.memory.activations import ActivationStore
from slideformer.memory.disk_staging import DiskStaging
from slideformer.memory.disk_state import DiskState
from slideformer.memory.embedding import EmbeddingTable
from slideformer.memory.feed import TokenFeed
from slideformer.memory.gradients import Accumulator, GradientRing
from slideformer.memory.head import HeadWeight
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.record_ring import RecordRing
from slideformer.memory.window import LayerWindow
from slideformer.models import stream_out
from slideformer.optim.adamw import LayerAdam
from slideformer.storage import checkpoint
from slideformer.storage.disk import DiskFile
from slideformer.streams import Lanes

# Name -> (object, function).
FILE_CALLS: dict[str, tuple[Any, str]] = {
    "write a unit": (checkpoint, "write_tensors"),
    "write the manifest": (checkpoint, "write_manifest"),
    "export a tensor": (stream_out, "_write_tensor"),
    "fsync": (os, "fsync"),
    "rename": (os, "rename"),
    "replace": (os, "replace"),
}
CALLS: dict[str, tuple[Any, str]] = {
    "allocate on the host": (HostAllocator, "empty"),
    "allocate on the device": (Lanes, "empty"),
    "load": (LayerState, "load"),
    "fetch": (LayerWindow, "fetch"),
    "layer": (LayerWindow, "layer"),
    "release": (LayerWindow, "release"),
    "invalidate": (LayerWindow, "invalidate"),
    "copy weights": (LayerState, "copy_weights"),
    "gather": (EmbeddingTable, "gather"),
    "feed": (TokenFeed, "send"),
    "enter": (compute, "enter"),
    "block without a graph": (compute, "block_forward"),
    "block": (compute, "block_recorded"),
    "block's backward": (compute, "block_backward"),
    "entry's backward": (compute, "enter_backward"),
    "save an activation": (ActivationStore, "save"),
    "turn": (ActivationStore, "turn"),
    "load an activation": (ActivationStore, "load"),
    "release an activation": (ActivationStore, "release"),
    "fetch the head": (HeadWeight, "fetch"),
    "head weight": (HeadWeight, "weight"),
    "head gradient": (HeadWeight, "new_gradient"),
    "release the head": (HeadWeight, "release"),
    "open a gradient": (GradientRing, "open"),
    "accumulate": (Accumulator, "add"),
    "flush": (GradientRing, "flush"),
    "flush in pieces": (GradientRing, "flush_into"),
    "send a gradient": (GradientRing, "send"),
    "open the rows' gradient": (EmbeddingTable, "open_gradient"),
    "submit": (Updates, "submit"),
    "close the step": (Updates, "close"),
    "update a layer": (LayerAdam, "step_spans"),
    "update rows": (LayerAdam, "step_rows"),
    "update the other rows": (LayerAdam, "step_except_rows"),
    "evaluate": (compute, "add_head_loss"),
    "logits": (compute, "next_logits"),
    "choose a token": (Sampler, "choose"),
    **FILE_CALLS,
}
DISK_CALLS: dict[str, tuple[Any, str]] = {
    "take room on the disk": (os, "posix_fallocate"),
    "allocate on the host": (HostAllocator, "empty"),
    "read a record": (DiskFile, "_read"),
    "write a record": (DiskFile, "_write"),
    "expect a record": (RecordRing, "expect"),
    "ask for a record": (RecordRing, "ready"),
    "borrow a record": (RecordRing, "borrow"),
    "wait for all records": (RecordRing, "drain"),
    "expect": (DiskStaging, "expect"),
    "ask whether it is there": (DiskStaging, "ready"),
    "wait for it": (DiskStaging, "arrive"),
    "copy it": (DiskState, "copy_record"),
    "its copy is submitted": (DiskStaging, "sent"),
    "forget it": (DiskStaging, "forget"),
    "find a place": (DiskStaging, "place"),
    "its place is filled": (DiskStaging, "filled"),
}


class Injected(Exception):
    """No error of the project's, nor one it could know."""


KINDS: list[Callable[[], BaseException]] = [
    lambda: Injected("injected"),
    lambda: OSError(ENOSPC, "injected"),
    lambda: torch.OutOfMemoryError("injected"),
    lambda: MemoryError("injected"),
    lambda: KeyboardInterrupt("injected"),
]


@dataclass
class Fault:
    """The `number`-th call (from 0) of `name` raises `error`, before or after its work.

    Attributes:
        counts: calls so far, by name.
        calls: what can be named.
    """

    name: str
    number: int
    after: bool
    error: BaseException
    reached: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    calls: dict[str, tuple[Any, str]] = field(default_factory=lambda: CALLS)

    @classmethod
    def drawn(cls, seed: int, counts: dict[str, int], calls: dict[str, tuple[Any, str]] = CALLS) -> "Fault":
        """Names take turns; one number more than there are calls is never reached."""
        draw = random.Random(seed)
        name = list(calls)[seed % len(calls)]
        number, after = draw.randint(0, counts[name]), draw.random() < 0.5
        return cls(name, number, after, draw.choice(KINDS)(), calls=calls)

    @contextmanager
    def injected(self) -> Iterator["Fault"]:
        """Within, the fault is in place."""
        with pytest.MonkeyPatch.context() as patch:
            for name, (owner, function) in self.calls.items():
                patch.setattr(owner, function, self._around(name, getattr(owner, function)))
            yield self

    def _around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            due = name == self.name and self.counts[name] == self.number
            self.counts[name] += 1
            self.reached |= due
            if due and not self.after:
                raise self.error
            result = function(*args, **kwargs)
            if due:
                raise self.error
            return result

        return wrapped


def no_fault(calls: dict[str, tuple[Any, str]] = CALLS) -> Fault:
    """Only counts."""
    return Fault("none", -1, False, Injected(), calls=calls)


def came_from(error: BaseException | None, origin: BaseException) -> bool:
    """Whether `origin` is an error or among its causes."""
    while error is not None and error is not origin:
        error = error.__cause__
    return error is origin
