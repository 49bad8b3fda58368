"""What generation needs of device memory: one block forward, and the keys and values that it leaves."""

from collections.abc import Callable

import torch
from torch import Tensor

from slideformer.engine import compute
from slideformer.engine.measure import (
    block_kinds,
    blocks_by_kind,
    example_inputs,
    inputs_bytes,
    line_through,
    peak_bytes,
    saved_bytes,
    zeros_for,
)
from slideformer.layout import FlatLayout
from slideformer.models.architecture import Decoder
from slideformer.models.caching import cache_of, cached_bytes, keeps_keys_and_values
from slideformer.plan.footprint import KeyValueSizes
from slideformer.plan.inference import InferenceWork

SHORT, LONG = 32, 64  # tokens; between them a cache grows by the token or, as a recurrent state, not at all


def measure_inference(decoder: Decoder, length: int, dtype: torch.dtype) -> InferenceWork:
    """Run every kind of block forward over sequences of `length`; on the CPU an estimate from what autograd would save.

    Args:
        length: tokens of a sequence in the longest pass.
    """
    cache = measure_keys_and_values(decoder, dtype)
    shared = inputs_bytes(decoder, length, dtype) + length * length * dtype.itemsize  # a mask, where prompts are padded
    if decoder.device.type == "cpu":
        short = min(length, LONG)
        block = max(saved_bytes(decoder, i, short, dtype) for i in block_kinds(decoder)) * length // short
        return InferenceWork(block, 0, shared, 0, cache)
    kinds, before = block_kinds(decoder), torch.cuda.memory_allocated(decoder.device)
    peak_bytes(_forward(decoder, kinds[0], 1, length, dtype))  # libraries allocate their workspaces now
    workspace = torch.cuda.memory_allocated(decoder.device) - before
    slope, fixed = line_through(
        lambda b: max(peak_bytes(_forward(decoder, i, b, length, dtype)) for i in kinds), length
    )
    return InferenceWork(slope, fixed, shared, workspace, cache)


def measure_keys_and_values(decoder: Decoder, dtype: torch.dtype) -> KeyValueSizes | None:
    """What a sequence leaves in the model's cache; None where the model keeps none."""
    if not keeps_keys_and_values(decoder):
        return None
    short, long = (_bytes_by_kind(decoder, tokens, dtype) for tokens in (SHORT, LONG))
    per_token = [(more - few) / (LONG - SHORT) for few, more in zip(short, long, strict=True)]
    fixed = [few - SHORT * slope for few, slope in zip(short, per_token, strict=True)]
    counts = [len(blocks) for blocks in blocks_by_kind(decoder)]
    return KeyValueSizes(
        sum(slope * count for slope, count in zip(per_token, counts, strict=True)),
        sum(size * count for size, count in zip(fixed, counts, strict=True)),
        max(per_token),
    )


def _bytes_by_kind(decoder: Decoder, tokens: int, dtype: torch.dtype) -> list[int]:
    """Bytes that one block of each kind caches of a sequence."""
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=decoder.device)
    rows = torch.zeros(1, decoder.embedding_width, dtype=dtype, device=decoder.device)
    shell = {name: torch.zeros(s, dtype=dtype, device=decoder.device) for name, s in decoder.shell_shapes.items()}
    found = []
    with torch.no_grad(), decoder.without_dropout():
        inputs = decoder.enter(ids, rows, ids, shell, seed=0, use_cache=True)
        for i in block_kinds(decoder):
            weights = FlatLayout(decoder.block_shapes(i)).views(zeros_for(decoder, i, dtype))
            decoder.block(i, weights, inputs.hidden, inputs, seed=0)
            found.append(cached_bytes(cache_of(inputs), i))
    return found


def _forward(decoder: Decoder, i: int, batch: int, length: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    weights = FlatLayout(decoder.block_shapes(i)).views(zeros_for(decoder, i, dtype))
    inputs, micro_batch = example_inputs(decoder, batch, length, dtype)
    return lambda: compute.block_forward(decoder, i, weights, inputs.hidden, inputs, micro_batch)
