"""Seconds of a step, from what it computes and moves and how fast the machine is."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from slideformer.layout import FlatLayout
from slideformer.plan.footprint import ModelSizes, records_on_disk, weights_on_disk
from slideformer.plan.operations import ModelOperations, Operations, StepTokens
from slideformer.plan.rates import ComputeRates, MachineRates
from slideformer.plan.schedule import Schedule, play, play_in_turn
from slideformer.plan.sizes import Sizes
from slideformer.plan.step_work import StepWork, scaled

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
ACCUMULATION_BYTES = 10  # a weight and micro-batch: the gradient is read, its fp32 sum read and written
HEAD_SUM_BYTES = 12  # a head weight and chunk: its gradient written and read, the fp32 sum read and written
LOSS_PASSES = 3  # over the logits: two that read, one that writes their gradient
ROUNDS = 4  # until AdamW's rate and the copies' share of the step agree


@dataclass(frozen=True)
class StepTiming:
    """A step of a run, predicted.

    Attributes:
        seconds: of a step.
        lanes: busy seconds of "compute", "h2d", "d2h", "adamw", where the host is not the device of "calls", and of
            "disk" if something is there; they overlap.
        bound: the lane that shortens the step the most if it is twice as fast.
        tokens: of a step, without padding.
        steps: of the run.
        break_even_tokens: of a step, padding included, from which on computation takes longer than AdamW.
        faster: seconds of a step if one lane were twice as fast, by lane.
        seconds_unclipped: of a step of these sizes without clipping; None: nothing is clipped.
        tokens_per_second_if_doubled: with twice the sequences a step.
        machine: whose rates these are.
        schedule: what runs when.
    """

    seconds: float
    lanes: dict[str, float]
    bound: str
    tokens: float
    steps: int
    break_even_tokens: float
    faster: dict[str, float]
    tokens_per_second_if_doubled: float
    seconds_unclipped: float | None
    machine: str
    schedule: Schedule

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def run_seconds(self) -> float:
        return self.seconds * self.steps

    def as_json(self) -> dict[str, Any]:
        """Everything but the single pieces of work, as plain values."""
        fields = asdict(replace(self, schedule=Schedule(0.0, [])))
        del fields["schedule"]
        return {**fields, "tokens_per_second": self.tokens_per_second, "run_seconds": self.run_seconds}


def predict(
    model: ModelSizes,
    operations: ModelOperations,
    sizes: Sizes,
    tokens: StepTokens,
    rates: MachineRates,
    dtype: torch.dtype,
    clipping: bool,
    steps: int,
) -> StepTiming:
    """The timing of an average step.

    Where the CPU computes, all lanes share its cores: a step is then the sum of them. With a GPU they overlap as the
    schedule says, and AdamW's rate lies between that alone and that under copies, by how busy the copies are.
    """
    alone = step_work(model, operations, sizes, tokens, rates, dtype, clipping)
    work, schedule = settle(alone, rates)
    play_on = play if rates.has_gpu else play_in_turn
    faster = {lane: play_on(scaled(work, {lane: 0.5})).seconds for lane in schedule.lanes}
    doubled = play_on(twice_the_tokens(work)).seconds
    return StepTiming(
        seconds=schedule.seconds,
        lanes=schedule.lanes,
        bound=min(faster, key=lambda lane: faster[lane]),
        tokens=tokens.tokens,
        steps=steps,
        break_even_tokens=tokens.computed * schedule.lanes["adamw"] / schedule.lanes["compute"],
        faster=faster,
        seconds_unclipped=settle(replace(alone, clipping=False), rates)[1].seconds if clipping else None,
        tokens_per_second_if_doubled=2 * tokens.tokens / doubled,
        machine=rates.name,
        schedule=schedule,
    )


def settle(
    work: StepWork, rates: MachineRates, guess: float | None = None, rounds: int = ROUNDS
) -> tuple[StepWork, Schedule]:
    """The work with AdamW as fast as it is beside such copies, and its schedule.

    Args:
        guess: seconds of the step, to begin with; None: those with AdamW as fast as it is alone.
    """
    if not rates.has_gpu:
        return work, play_in_turn(work)
    busy = work.busy_seconds()
    copies, schedule = busy["h2d"] + busy["d2h"], None
    seconds = guess or play(work).seconds
    for _ in range(rounds):
        settled = scaled(work, {"adamw": slowdown_at(rates, copies / (2 * seconds) if seconds else 0.0)})
        schedule = play(settled)
        seconds = schedule.seconds
    assert schedule is not None
    return settled, schedule


def slowdown_at(rates: MachineRates, share: float) -> float:
    """How much longer AdamW takes than alone, where both directions of the link are busy for that share of the step, on
    average: copies share the host's memory with it."""
    under, alone = rates.host.adamw_parameters_under_copies, rates.host.adamw_parameters
    if under is None:
        return 1.0
    return alone / (alone + (under - alone) * min(1.0, share))


def twice_the_tokens(work: StepWork) -> StepWork:
    """The work of a step with twice the micro-batches: weights, gradients and updates stay what they are."""

    def twice(values: list[float]) -> list[float]:
        return [2 * value for value in values]

    return replace(
        work, forward=twice(work.forward), backward=twice(work.backward), head=2 * work.head,
        call_forward=twice(work.call_forward), call_backward=twice(work.call_backward), save=twice(work.save),
        load=twice(work.load), save_outputs=twice(work.save_outputs), load_outputs=twice(work.load_outputs),
        write_boundary=twice(work.write_boundary), read_boundary=twice(work.read_boundary),
        fetch_inputs=2 * work.fetch_inputs, update_rows=2 * work.update_rows,
    )  # fmt: skip


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
