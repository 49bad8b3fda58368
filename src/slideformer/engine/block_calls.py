"""What calling a block's operators costs the host, measured on a block: of a small model that is what a step takes.

A chain of bare operators would say half of it (one H200, 0.6B parameters: 10 us an operator, and steps that are as long
as if one took 20): modules, views of weights, saved tensors and the launches of compiled kernels come with it.
"""

import time
from statistics import median

import torch
from transformers import Qwen3Config

from slideformer.engine import compute
from slideformer.engine.layouts import layouts
from slideformer.engine.measure import example_inputs, zeros_for
from slideformer.engine.operations import count_operations
from slideformer.kernels.attention import preferred_attention
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.memory.gradients import Accumulator
from slideformer.models.architecture import Decoder

ROUNDS = 15
TOKENS = 16  # few, so that the device has done them before the host has called the next


def block_call_seconds(device: torch.device) -> float:
    """Seconds of an operator, its share of all else that the host does for a block's forward and backward included."""
    config = Qwen3Config(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=64, vocab_size=256,
    )  # fmt: skip
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    fused = choose_kernels("auto", device.type) == "liger"
    decoder = Decoder(config, device, "sdpa", apply_liger if fused else None)
    counted = count_operations(Decoder(config, torch.device("cpu"), "sdpa"), dtype, fused)
    assert counted is not None
    block = counted.blocks[0]
    return _pass_seconds(decoder, dtype) / (block.forward.calls + block.backward.calls)


def _pass_seconds(decoder: Decoder, dtype: torch.dtype) -> float:
    """Of the host, for forward and backward of one block; the median, after rounds in which kernels are compiled."""
    layout = layouts(decoder)[decoder.block_names[0]]
    weights = layout.views(zeros_for(decoder, 0, dtype))
    into = Accumulator(layout, torch.empty(layout.trained_numel, dtype=dtype, device=decoder.device))
    inputs, batch = example_inputs(decoder, 1, TOKENS, dtype)
    x, dy = torch.randn_like(inputs.hidden), torch.randn_like(inputs.hidden)
    seconds = []
    with preferred_attention(decoder.device):
        for _ in range(2 * ROUNDS):
            if decoder.device.type != "cpu":
                torch.accelerator.synchronize(decoder.device)
            begun = time.perf_counter()
            tape = compute.block_recorded(decoder, 0, weights, x, inputs, batch, "all")
            tape.take_output()
            compute.block_backward(decoder, 0, tape, weights, x, inputs, dy, into)
            seconds.append(time.perf_counter() - begun)
    return median(seconds[ROUNDS:])
