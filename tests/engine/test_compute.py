"""Forward and backward of each part equal autograd over the whole, whatever the chunks."""

from functools import cache

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from tiny_runs import Subject, batch_at, make_records, mean_loss, subject
from torch import Tensor

from slideformer.engine import compute
from slideformer.engine.tape import Level, as_leaves
from slideformer.layout import FlatLayout
from slideformer.memory.gradients import Accumulator

BATCH = batch_at(make_records(3), 3, 0)
TRAINED = BATCH.trained_tokens
LEVELS: list[Level] = ["all", "outputs", "recompute"]


@cache
def tiny(family: str) -> Subject:
    return subject(tiny_model(family))


def micro_batch() -> tuple[compute.MicroBatch, Tensor]:
    rows, row_of = torch.unique(BATCH.input_ids, return_inverse=True)
    positions = (BATCH.targets.flatten() != -100).nonzero().flatten()
    targets = BATCH.targets.flatten()[positions]
    return compute.MicroBatch(BATCH.input_ids, row_of, positions, targets, seed=0), rows


def new_accumulator(shapes: dict[str, tuple[int, ...]]) -> Accumulator:
    layout = FlatLayout(shapes)
    return Accumulator(layout, torch.full((layout.numel,), float("nan")))


def gradients_of(accumulator: Accumulator) -> dict[str, Tensor]:
    return accumulator.layout.views(accumulator.flat)


def whole_pass(of: Subject, chunk: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and all gradients, part by part, as a step runs them."""
    decoder, weights = of.decoder, {name: value.detach() for name, value in of.model.named_parameters()}
    batch, ids = micro_batch()
    shell = {name: weights[name] for name in decoder.shell_shapes}
    blocks = [
        {name: weights[f"{prefix}.{name}"] for name in decoder.block_shapes(i)}
        for i, prefix in enumerate(decoder.block_names)
    ]
    rows = weights[decoder.embedding_name][ids]
    inputs = compute.enter(decoder, batch, rows, shell)
    xs, tapes = [compute.hidden_of(inputs)], []
    for i, block in enumerate(blocks):
        tapes.append(compute.block_recorded(decoder, i, block, xs[-1], inputs, batch, LEVELS[i % 3]))
        y = compute.block_forward(decoder, i, block, xs[-1], inputs, batch)
        xs.append(compute.output_of(tapes[-1]))
        assert torch.equal(xs[-1], y) and not xs[-1].requires_grad

    loss, d_shell, d_head = torch.zeros(()), new_accumulator(decoder.shell_shapes), torch.zeros(decoder.head_shape)
    head = weights[decoder.head_name]
    dx = compute.head_loss_and_gradient(
        decoder, head, d_head, shell, xs[-1], batch, TRAINED, chunk, loss, d_shell
    )  # fmt: skip
    again = torch.zeros((), dtype=torch.float64)
    compute.add_head_loss(decoder, head, shell, xs[-1], batch, chunk, again)
    assert float(again) / TRAINED == pytest.approx(float(loss), rel=1e-6)

    gradients = {}
    for i in reversed(range(decoder.depth)):
        into = new_accumulator(decoder.block_shapes(i))
        dx = compute.block_backward(decoder, i, tapes[i], blocks[i], xs[i], inputs, dx, into)
        assert dx is not None
        gradients |= {f"{decoder.block_names[i]}.{name}": value for name, value in gradients_of(into).items()}
    d_rows = torch.zeros(rows.shape)
    compute.enter_backward(decoder, batch, rows, shell, inputs, dx, d_rows, None, d_shell)
    d_table = torch.zeros(decoder.vocabulary, decoder.embedding_width)
    d_table[ids] = d_rows
    gradients |= gradients_of(d_shell) | {decoder.embedding_name: d_table}
    gradients[decoder.head_name] = d_table + d_head if decoder.tied else d_head
    return float(loss), gradients


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [5, 1000])
def test_parts_together_are_autograd_over_the_whole(family: str, chunk: int):
    of = tiny(family)
    loss, gradients = whole_pass(of, chunk)
    expected = mean_loss(of.model, BATCH)
    parameters = dict(of.model.named_parameters())
    d_expected = dict(zip(parameters, torch.autograd.grad(expected, list(parameters.values())), strict=True))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert gradients.keys() == d_expected.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(value, d_expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_padding_row_gets_no_gradient_from_the_embedding():
    of = tiny("llama")
    batch, ids = micro_batch()
    rows = of.model.get_input_embeddings().weight.detach()[ids]
    shell = {name: dict(of.model.named_parameters())[name].detach() for name in of.decoder.shell_shapes}
    inputs = compute.enter(of.decoder, batch, rows, shell)
    gradient = torch.zeros(rows.shape)
    into = new_accumulator(of.decoder.shell_shapes)
    compute.enter_backward(of.decoder, batch, rows, shell, inputs, torch.ones_like(inputs.hidden), gradient, 2, into)
    assert not gradient[2].any() and gradient[1].all() and gradient[3].all()
    assert not into.flat.any()  # the norm behind the blocks has no part in it: zero, not what lay there


def test_leaves_share_memory_and_nothing_else():
    weight = torch.ones(3, requires_grad=True) * 2
    leaf = as_leaves({"w": weight})["w"]
    assert leaf.is_leaf and leaf.requires_grad and leaf.data_ptr() == weight.data_ptr()
