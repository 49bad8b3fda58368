"""The host never waits for the device while it submits forward, head and backward."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_models import tiny_model

from slideformer.engine import compute
from slideformer.engine.layouts import SHELL, layouts
from slideformer.engine.measure import example_inputs, zeros_for
from slideformer.kernels.attention import preferred_attention
from slideformer.memory.gradients import Accumulator
from slideformer.models.architecture import Decoder

pytestmark = pytest.mark.gpu
CUDA, DTYPE = torch.device("cuda"), torch.bfloat16
BATCH, LENGTH = 3, 24


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step_of_a_micro_batch(decoder: Decoder, ids: torch.Tensor, head: torch.Tensor, d_head: torch.Tensor) -> None:
    found = layouts(decoder)
    shell_layout, layout = found[SHELL], found[decoder.block_names[0]]
    shell = shell_layout.views(torch.ones(shell_layout.numel, dtype=DTYPE, device=CUDA))
    rows = torch.zeros(1, decoder.embedding_width, dtype=DTYPE, device=CUDA)
    batch = compute.MicroBatch(ids, torch.zeros_like(ids), torch.arange(ids.numel(), device=CUDA), ids.flatten(), 0)
    inputs = compute.enter(decoder, batch, rows, shell)
    weights = layout.views(zeros_for(decoder, 0, DTYPE))
    tape = compute.block_recorded(decoder, 0, weights, inputs.hidden, inputs, batch, "recompute")
    into = Accumulator(shell_layout, torch.empty(shell_layout.trained_numel, device=CUDA))
    loss = torch.zeros((), device=CUDA)
    dx = compute.head_loss_and_gradient(
        decoder, head, d_head, shell, tape.take_output(), batch, ids.numel(), 16, loss, into
    )  # fmt: skip
    gradients = Accumulator(layout, torch.empty(layout.trained_numel, device=CUDA))
    compute.block_backward(decoder, 0, tape, weights, inputs.hidden, inputs, dx, gradients)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_nothing_waits_for_the_device(family: str):
    decoder = Decoder(tiny_model(family).config, CUDA, "sdpa")
    ids = example_inputs(decoder, BATCH, LENGTH, DTYPE)[1].input_ids
    head = torch.ones(decoder.head_shape, dtype=DTYPE, device=CUDA)
    d_head = torch.zeros(decoder.head_shape, device=CUDA)
    with preferred_attention(CUDA):
        step_of_a_micro_batch(decoder, ids, head, d_head)  # looks at each length of rows once
        with refusing_to_wait():
            step_of_a_micro_batch(decoder, ids, head, d_head)
