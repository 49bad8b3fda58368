"""What calling a block's operators costs the host, measured in training steps: of a small model that is what they take.

Bare operators would say half of it (one H200: 7 us for an addition, and steps of 0.6B parameters that are as long as if
an operator took 12): modules, views of weights, saved tensors, lanes, the launches of compiled kernels and the threads
beside come with it. So steps of two tiny models are timed, and the deeper one's other blocks make the difference.
"""

import time
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch
from transformers import Qwen3Config

from slideformer.data.batches import collate
from slideformer.data.examples import Example
from slideformer.engine.engine import Engine
from slideformer.engine.operations import count_operations
from slideformer.engine.random_weights import random_weights
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.lanes.lanes import lanes_for
from slideformer.lanes.measured import measured, take_spans
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.operations import Operations
from slideformer.plan.sizes import Sizes

DEPTHS = (4, 12)  # blocks
WARM_UP = 5  # steps, in which kernels are compiled
ROUNDS = 20  # steps
TOKENS = 16  # few, so that the device has done them before the host has called the next


def block_call_seconds(device: torch.device) -> float:
    """Seconds of an operator, its share of all else that the host does for a block's forward and backward included."""
    few, many = (step_seconds(depth, device) for depth in DEPTHS)
    of_a_block = (many - few) / (DEPTHS[1] - DEPTHS[0])
    if of_a_block <= 0:  # something else ran on the machine meanwhile
        of_a_block = many / DEPTHS[1]
    return of_a_block / sum(operations.calls for operations in _operations(device))


def step_seconds(depth: int, device: torch.device) -> float:
    """Of a training step of a tiny model with so many blocks, all forwards kept; the median."""
    dtype = _dtype(device)
    decoder = Decoder(_config(depth), device, "sdpa", apply_liger if _fused(device) else None)
    sizes = Sizes(
        window_depth=3, micro_batch_size=1, micro_batches=1, max_length=TOKENS, gradient_slots=depth, host_boundaries=0,
        head_chunk=TOKENS, kept=depth,
    )  # fmt: skip
    batch = collate([Example(0, ids := torch.arange(TOKENS, dtype=torch.int32), ids)], 0)
    hyper = AdamWStep(learning_rate=1e-5, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, step=1)
    with Engine(decoder, sizes, dtype, measured(lanes_for(device))) as engine:
        engine.load(random_weights(engine, decoder.config, 0))
        begun = []
        for step in range(1, WARM_UP + ROUNDS + 1):
            begun.append(time.perf_counter())
            engine.train_step(batch, replace(hyper, step=step), None)
            take_spans(engine.lanes)
        engine.drain()
    counted = begun[WARM_UP:]
    return median(after - before for before, after in pairwise(counted))


def _operations(device: torch.device) -> tuple[Operations, Operations]:
    """(forward, backward) of one of the blocks."""
    plain = Decoder(_config(DEPTHS[0]), torch.device("cpu"), "sdpa")
    counted = count_operations(plain, _dtype(device), _fused(device))
    assert counted is not None
    return counted.blocks[0].forward, counted.blocks[0].backward


def _config(depth: int) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=128, intermediate_size=256, num_hidden_layers=depth, num_attention_heads=2, num_key_value_heads=1,
        head_dim=64, vocab_size=256,
    )  # fmt: skip


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _fused(device: torch.device) -> bool:
    return choose_kernels("auto", device.type) == "liger"
