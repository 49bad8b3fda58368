"""A tape gives the same bits kept and recomputed, computes nothing twice, and follows its layer from slot to slot."""

import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from tiny_runs import subject
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from slideformer.engine import compute
from slideformer.engine.tape import Level, Tape
from slideformer.layout import FlatLayout
from slideformer.memory.gradients import Accumulator
from slideformer.models.architecture import Decoder

LEVELS: tuple[Level, ...] = ("recompute", "outputs", "all")
X = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(0))
DY = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(1))


def slot_of(of: Any, i: int) -> tuple[FlatLayout, Tensor]:
    decoder, weights = of.decoder, dict(of.model.named_parameters())
    layout = FlatLayout(decoder.block_shapes(i))
    flat = torch.zeros(layout.numel)
    for name, view in layout.views(flat).items():
        view.copy_(weights[f"{decoder.block_names[i]}.{name}"].detach())
    return layout, flat


def record(decoder: Decoder, i: int, weights: dict[str, Tensor], level: Level) -> Tape:
    ids = torch.ones(2, 12, dtype=torch.int64)
    batch = compute.MicroBatch(ids, ids * 0, ids[0, :0], ids[0, :0], seed=3)
    shell = {name: torch.zeros(shape) for name, shape in decoder.shell_shapes.items()}
    inputs = compute.enter(decoder, batch, torch.zeros(1, decoder.embedding_width), shell)
    return compute.block_recorded(decoder, i, weights, X, inputs, batch, level)


def run(of: Any, i: int, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and the weights' gradient, with the slot overwritten between forward and backward."""
    layout, flat = slot_of(of, i)
    first = flat.clone()
    tape = record(of.decoder, i, layout.views(first), level)
    y = tape.take_output()
    first.fill_(float("nan"))  # another layer comes
    into = Accumulator(layout, torch.zeros(layout.numel))
    (dx,) = tape.backward(layout.views(flat), [X], DY, into)
    assert dx is not None
    return y, dx, into.flat


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", ["recompute", "outputs"])
def test_the_levels_differ_in_no_bit_though_the_slot_is_reused(family: str, level: Level):
    of = subject(tiny_model(family))
    for i in range(of.decoder.depth):
        for kept, recomputed in zip(run(of, i, level="all"), run(of, i, level), strict=True):
            assert torch.equal(kept, recomputed) and bool(torch.isfinite(kept).all())


class CountedOps(TorchDispatchMode):
    """How often each operator runs within."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] = self.counts.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


def backward_calls(level: Level) -> tuple[int, int]:
    """(matrix products, attentions) that backward runs, what it recomputes included."""
    of = subject(tiny_model("llama"))
    layout, flat = slot_of(of, 0)
    tape = record(of.decoder, 0, layout.views(flat), level)
    into = Accumulator(layout, torch.zeros(layout.numel))
    with CountedOps() as ops:
        tape.backward(layout.views(flat), [X], DY, into)
    attention = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    return ops.counts["aten.mm.default"], ops.counts.get(attention, 0)


def test_what_is_kept_is_not_computed_again():
    matmuls = 7  # q, k, v, o, gate, up, down: each has two in backward
    assert backward_calls(level="all") == (2 * matmuls, 0)
    assert backward_calls(level="outputs") == (2 * matmuls, 0)
    assert backward_calls(level="recompute") == (3 * matmuls - 1, 1)  # the block's last output is not needed


def test_an_output_is_taken_once_and_not_held():
    of = subject(tiny_model("llama"))
    layout, flat = slot_of(of, 0)
    tape = record(of.decoder, 0, layout.views(flat), level="recompute")
    assert tape.take_output().shape == X.shape
    with pytest.raises(AssertionError):
        tape.take_output()


def test_memory_does_not_wait_for_the_garbage_collector():
    of = subject(tiny_model("llama"))
    layout, flat = slot_of(of, 0)
    for level in LEVELS:
        tape = record(of.decoder, 0, layout.views(flat), level)
        tape.take_output()
        tape.backward(layout.views(flat), [X], DY, Accumulator(layout, torch.zeros(layout.numel)))
        saved = weakref.ref(tape._saved)
        gc.disable()
        try:
            del tape
            assert saved() is None
        finally:
            gc.enable()


def test_a_block_that_does_not_repeat_itself_is_refused():
    calls = []

    def forward(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        calls.append(0)
        return (x * weights["w"]).exp() if len(calls) == 1 else x * weights["w"]

    flat = torch.ones(12 * 64)
    tape = Tape(forward, {"w": flat.view(12, 64)}, [X], level="recompute")
    with pytest.raises(RuntimeError, match="saved 3 tensors and 2 when it was recomputed"):
        tape.backward({"w": flat.view(12, 64)}, [X], DY, Accumulator(FlatLayout({"w": (12, 64)}), flat.clone()))


@pytest.mark.parametrize("level", LEVELS)
def test_a_tape_that_is_dropped_before_backward_frees_its_memory_at_once(level: Level):
    """As measuring what a level holds does; a graph that holds itself would stay until the process ends."""
    of = subject(tiny_model("llama"))
    layout, flat = slot_of(of, 0)
    gc.disable()
    try:
        saved = weakref.ref(record(of.decoder, 0, layout.views(flat), level)._saved)
        assert saved() is None
    finally:
        gc.enable()
