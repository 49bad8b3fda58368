"""Expensive outputs are held as they were given, no more of them than needed, and handed out in order."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slideformer.engine.outputs import Recorder, Repeater
from slideformer.engine.tape import Level, Tape
from slideformer.layout import FlatLayout
from slideformer.memory.gradients import Accumulator

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
LAYOUT = FlatLayout({"a": (8, 8), "b": (8, 8)})
FLAT = torch.randn(LAYOUT.numel, generator=torch.Generator().manual_seed(1))
Forward = Callable[..., Tensor]


def gradients(forward: Forward, level: Level) -> tuple[Tensor, Tensor, int]:
    weights = LAYOUT.views(FLAT)
    tape = Tape(forward, weights, [X], level)
    held = tape.output_bytes
    into = Accumulator(LAYOUT, torch.zeros(LAYOUT.numel))
    (dx,) = tape.backward(weights, [X], torch.ones_like(tape.take_output()), into)
    assert dx is not None and tape.output_bytes == 0
    return dx, into.flat, held


def plain(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ w["a"]) @ w["b"]


def in_place(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return (x @ w["a"]).mul_(3).tanh() @ w["b"]


def in_place_through_a_view(w: dict[str, Tensor], x: Tensor) -> Tensor:
    y = x @ w["a"]
    y.view(-1)[3:7].add_(1)
    return torch.tanh(y) @ w["b"]


def with_bias(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(F.linear(x, w["a"], w["b"][0])) @ w["b"]


def attention(w: dict[str, Tensor], x: Tensor, dropout: float = 0.0) -> Tensor:
    q, k = ((x @ w[name]).view(1, 1, 4, 8) for name in ("a", "b"))
    return F.dropout(F.scaled_dot_product_attention(q, k, q, dropout_p=dropout)[0, 0].tanh(), 0.5) @ w["b"]


def seeded(w: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return attention(w, x, dropout=0.5)


@pytest.mark.parametrize("forward", [plain, in_place, in_place_through_a_view, with_bias, seeded])
def test_the_same_bits_whatever_the_block_does_with_its_outputs(forward: Forward):
    for one, other in zip(gradients(forward, "outputs")[:2], gradients(forward, "recompute")[:2], strict=True):
        assert torch.equal(one, other)


def test_what_nothing_needs_is_not_held():
    assert gradients(plain, "outputs")[2] == X.nbytes  # not the last product
    assert gradients(plain, "recompute")[2] == gradients(plain, "all")[2] == 0


@pytest.mark.parametrize("forward", [in_place, in_place_through_a_view])
def test_an_output_that_was_written_to_is_not_used(forward: Forward):
    assert gradients(forward, "outputs")[2] == 0


def test_a_block_that_calls_other_operators_is_refused():
    with Recorder(lambda: 0) as recorder:
        torch.mm(X.T, X)
    recorder._saved = lambda: 1
    with Repeater(recorder.take()), pytest.raises(RuntimeError, match="aten.mm.default in forward and aten.bmm"):
        torch.bmm(X[None], X.T[None])


def test_results_are_held_without_their_graph():
    w = FLAT[:64].view(8, 8).clone().requires_grad_()
    with Recorder(lambda: 0) as recorder:
        y = X @ w
    recorder._saved = lambda: 1
    ((held,),) = (results.values for results in recorder.take())
    assert y.requires_grad and not held.requires_grad and held.data_ptr() == y.data_ptr()
