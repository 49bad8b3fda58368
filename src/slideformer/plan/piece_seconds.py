"""Seconds of each piece of a step: what it computes, moves and calls, over how fast the machine is."""

import math
from dataclasses import replace

import torch

from slideformer.layout import FlatLayout
from slideformer.plan.footprint import ModelSizes, records_on_disk, weights_on_disk
from slideformer.plan.operations import ModelOperations, Operations, StepTokens
from slideformer.plan.rates import ComputeRates, MachineRates
from slideformer.plan.sizes import Sizes
from slideformer.plan.step_work import StepWork

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
ACCUMULATION_BYTES = 10  # a weight and micro-batch: the gradient is read, its fp32 sum read and written
HEAD_SUM_BYTES = 12  # a head weight and chunk: its gradient written and read, the fp32 sum read and written
LOSS_PASSES = 3  # over the logits: two that read, one that writes their gradient


def step_work(
    model: ModelSizes,
    operations: ModelOperations,
    sizes: Sizes,
    tokens: StepTokens,
    rates: MachineRates,
    dtype: torch.dtype,
    clipping: bool,
) -> StepWork:
    """Seconds of each piece of a step, AdamW as fast as it is alone."""
    n, name, layouts = len(model.blocks), NAMES[dtype], model.block_layouts
    h2d, d2h = _link(rates)
    adamw = rates.host.adamw_parameters
    head, table = model.layouts[model.head], model.layouts[model.embedding]
    boundary = tokens.computed * model.hidden * dtype.itemsize
    on_host = sizes.boundaries_on_host(n)
    outputs = sizes.host_output_bytes * tokens.computed / sizes.step_tokens
    rows = min(tokens.computed, model.vocabulary) * model.embedding_width
    tied = model.head == model.embedding
    row_update = min(rows, table.trained_numel)
    ends = 0.0 if sizes.resident_ends else 1.0  # of what embedding and head take elsewhere
    at_ends = [] if ends else [head, *([] if tied else [table])]
    records, weights = records_on_disk(model, sizes, dtype), weights_on_disk(model, sizes, dtype)
    whole = [records.get(unit, 0) + weights.get(unit, 0) for unit in model.blocks]
    boundary_bytes = [boundary if i < sizes.boundaries_on_disk(n) else 0 for i in range(n)]
    reading, writing = (rates.disk.read_bytes, rates.disk.write_bytes) if rates.disk else (math.inf, math.inf)

    def seconds_of(operations: Operations) -> float:
        return block_seconds(operations, tokens, sizes.micro_batches, rates.compute, name)

    forward = [seconds_of(block.forward) for block in operations.blocks]
    backward = [
        seconds_of(block.backward) + seconds_of(again_in_backward(block.forward, i, n, sizes))
        + _accumulation_seconds(layouts[i], sizes, rates.compute)
        + (update_on_device(layouts[i], sizes, rates.compute) if i < sizes.resident else 0.0)
        for i, block in enumerate(operations.blocks)
    ]  # fmt: skip
    call_forward, call_backward = call_seconds(operations, sizes, rates.compute)
    if not rates.has_gpu:  # who calls computes
        forward, backward = added(forward, call_forward), added(backward, call_backward)
        call_forward = call_backward = [0.0] * n
    return StepWork(
        forward=forward,
        backward=backward,
        call_forward=call_forward,
        call_backward=call_backward,
        head=head_seconds(operations.head_parameters, model.vocabulary, tokens, sizes, rates.compute, dtype)
        + sum(update_on_device(layout, sizes, rates.compute) for layout in at_ends),
        fetch=[layout.numel * dtype.itemsize / h2d for layout in layouts],
        fetch_head=ends * head.numel * dtype.itemsize / h2d,
        fetch_inputs=ends * rows * dtype.itemsize / h2d,
        send=[layout.trained_numel * dtype.itemsize / d2h for layout in layouts],
        send_head=ends * head.trained_numel * dtype.itemsize / d2h,
        save=[boundary / d2h if i < on_host else 0.0 for i in range(n)],
        load=[boundary / h2d if i < on_host else 0.0 for i in range(n)],
        save_outputs=[sizes.forwards_of_layer_on_host(i, n) * outputs / d2h for i in range(n)],
        load_outputs=[sizes.fetched_forwards_of_layer(i, n) * outputs / h2d for i in range(n)],
        update=[layout.trained_numel / adamw for layout in layouts],
        update_head=0.0 if tied else ends * head.trained_numel / adamw,
        update_table=ends * (table.trained_numel - row_update) / adamw,
        update_rows=ends * row_update / adamw,
        read=[size / reading for size in whole],
        write=[size / writing for size in whole],
        read_weights=[weights.get(unit, 0) / reading for unit in model.blocks],
        write_boundary=[size / writing for size in boundary_bytes],
        read_boundary=[size / reading for size in boundary_bytes],
        micro_batches=sizes.micro_batches,
        resident=min(sizes.resident, n),
        buffers=sizes.disk_buffers,
        weight_buffers=sizes.staging_buffers,
        boundary_buffers=max(1, sizes.staging_buffers // sizes.micro_batches),
        depth=min(sizes.window_depth, n),
        slots=max(1, sizes.slots_for(n)),
        clipping=clipping,
        tied=tied,
    )


def again_in_backward(forward: Operations, i: int, blocks: int, sizes: Sizes) -> Operations:
    """What of block i's forwards its backward repeats: all, what is between the expensive operators, or nothing."""
    if i >= blocks - sizes.kept_of(blocks)[0]:
        return Operations(0.0, 0.0, 0.0)
    again = 1.0 - sizes.share_of_outputs(i, blocks)
    return replace(
        forward, matmul_flops=again * forward.matmul_flops, attention_flops=again * forward.attention_flops
    )  # fmt: skip


def call_seconds(operations: ModelOperations, sizes: Sizes, rates: ComputeRates) -> tuple[list[float], list[float]]:
    """(forward, backward) of the host, for each block and all micro-batches.

    Where expensive outputs are picked out, each operator of a forward goes through Python once more, which takes about
    as long as the call itself.
    """
    n, each = len(operations.blocks), sizes.micro_batches * rates.call_seconds
    forward = [
        each * (1 + sizes.share_of_outputs(i, n)) * block.forward.calls for i, block in enumerate(operations.blocks)
    ]
    kept = sizes.kept_of(n)[0]
    return forward, [
        each * block.backward.calls + (forward[i] if i < n - kept else 0.0) for i, block in enumerate(operations.blocks)
    ]


def added(some: list[float], more: list[float]) -> list[float]:
    return [a + b for a, b in zip(some, more, strict=True)]


def update_on_device(layout: FlatLayout, sizes: Sizes, rates: ComputeRates) -> float:
    """AdamW where the state is in the GPU's memory: both planes and moments are read and written, the gradient read."""
    each = 2 * (4 + 2 * sizes.moment_dtype.itemsize) + 2
    return layout.trained_numel * each / rates.memory_bytes


def block_seconds(
    operations: Operations,
    tokens: StepTokens,
    micro_batches: int,
    rates: ComputeRates,
    dtype_name: str,
) -> float:
    """One pass of all micro-batches through one block."""
    pairs = tokens.computed * tokens.context
    return (
        tokens.computed * operations.matmul_flops / rates.matmul_flops[dtype_name]
        + pairs * operations.attention_flops / rates.attention_rate(dtype_name, tokens.context)
        + (tokens.computed * operations.memory_bytes + micro_batches * operations.fixed_bytes) / rates.memory_bytes
    )


def head_seconds(
    parameters: int, vocabulary: int, tokens: StepTokens, sizes: Sizes, rates: ComputeRates, dtype: torch.dtype
) -> float:
    """Logits, loss, and both gradients of all trained tokens, chunk by chunk."""
    chunks = max(sizes.micro_batches, -(-tokens.trained // sizes.head_chunk))
    traffic = LOSS_PASSES * tokens.trained * vocabulary * dtype.itemsize + chunks * parameters * HEAD_SUM_BYTES
    products = 3 if sizes.head_shards == 1 else 4  # logits of a shard are computed in both its passes
    return products * 2 * parameters * tokens.trained / rates.matmul_flops[NAMES[dtype]] + traffic / rates.memory_bytes


def _accumulation_seconds(layout: FlatLayout, sizes: Sizes, rates: ComputeRates) -> float:
    """Gradients of several micro-batches are summed in fp32."""
    times = sizes.micro_batches if sizes.micro_batches > 1 else 0
    return times * layout.trained_numel * ACCUMULATION_BYTES / rates.memory_bytes


def _link(rates: MachineRates) -> tuple[float, float]:
    """(to the GPU, from it), bytes per second, both busy; on a CPU a copy, which reads and writes each byte."""
    if rates.link is None:
        return rates.host.copy_bytes / 2, rates.host.copy_bytes / 2
    return rates.link.h2d_together_bytes, rates.link.d2h_together_bytes
