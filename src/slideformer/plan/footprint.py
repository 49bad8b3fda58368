"""Bytes of every named buffer of an engine, by tier, from the code that allocates them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from slideformer.layout import FlatLayout
from slideformer.memory.activations import ActivationStore
from slideformer.memory.boundaries_on_disk import BoundariesOnDisk, boundary_records
from slideformer.memory.device_state import WayOut, units_on_device
from slideformer.memory.device_table import DeviceTable
from slideformer.memory.disk_staging import DiskStaging
from slideformer.memory.disk_state import record_bytes, spread, units_on_disk, weight_bytes
from slideformer.memory.embedding import EmbeddingTable
from slideformer.memory.feed import TokenFeed
from slideformer.memory.gradients import GradientRing
from slideformer.memory.head import HeadWeight
from slideformer.memory.head_shards import HeadShards, shard_rows
from slideformer.memory.host import LayerState
from slideformer.memory.host_outputs import HostOutputs
from slideformer.memory.record_ring import RecordRing
from slideformer.memory.snapshot import SnapshotMemory
from slideformer.memory.window import LayerWindow
from slideformer.plan.sizes import Sizes
from slideformer.storage.disk import DiskFile


@dataclass(frozen=True)
class ModelSizes:
    """What the footprint of a model depends on.

    Attributes:
        layouts: by unit (a block, the embedding, the shell, the head), in the order of use.
        blocks, embedding, shell, head: names of units; a tied head is the embedding.
        vocabulary, embedding_width, hidden: rows and width of the embedding; width between blocks.
        buffer_bytes: buffers of the model that live on the device.
        head_shards_exactly: whether the logits of a shard of the vocabulary are a slice of the whole head's.
    """

    layouts: Mapping[str, FlatLayout]
    blocks: list[str]
    embedding: str
    shell: str
    head: str
    vocabulary: int
    embedding_width: int
    hidden: int
    buffer_bytes: int
    head_shards_exactly: bool = False

    @property
    def parameters(self) -> int:
        return sum(layout.parameter_count for layout in self.layouts.values())

    @property
    def trained_parameters(self) -> int:
        return sum(field.numel for layout in self.layouts.values() for field in layout.trained_fields)

    @property
    def block_layouts(self) -> list[FlatLayout]:
        return [self.layouts[name] for name in self.blocks]


STATISTICS_BYTES = 16  # of a token's softmax over shards: three numbers, and their log-sum
LOGIT_BYTES = 16  # of an answer's next token: in fp32, sorted with its index, and as a probability


@dataclass(frozen=True)
class KeyValueSizes:
    """Memory that a sequence takes in the model's cache: `fixed_bytes` + `token_bytes` for each token.

    `layer_token_bytes` is the share of the largest layer, which exists twice while it grows.
    """

    token_bytes: float
    fixed_bytes: float
    layer_token_bytes: float

    def bytes_needed(self, sequences: int, tokens: int) -> int:
        return int(sequences * (self.fixed_bytes + tokens * (self.token_bytes + self.layer_token_bytes))) + 1


@dataclass(frozen=True)
class Answers:
    """Sample prompts that are answered during training: how many, and tokens of the longest with its answer."""

    prompts: int
    tokens: int
    cache: KeyValueSizes | None


@dataclass(frozen=True)
class Work:
    """Device memory that computation needs beside the named buffers, per sequence of a micro-batch and at rest.

    Attributes:
        block_bytes: backward of the hungriest block over one sequence, its recomputation included.
        block_fixed_bytes: what does not grow with the sequences (weight gradients, workspaces).
        inputs_bytes: masks and rotary tables of one sequence.
        logit_bytes: per token of a head chunk, loss and gradient together.
        workspace_bytes: what libraries keep once they have been used.
        kept_bytes: what a block that is kept whole holds of one sequence until its backward, beside its input.
        kept_outputs_bytes: the same of a block of which the expensive operators' outputs are kept.
        answers: what is generated between two steps; None: nothing.
    """

    block_bytes: int
    block_fixed_bytes: int
    inputs_bytes: int
    logit_bytes: int
    workspace_bytes: int
    kept_bytes: int = 0
    kept_outputs_bytes: int = 0
    answers: Answers | None = None


def host_bytes(model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> dict[str, int]:
    """Named buffers in host memory."""
    n = len(model.blocks)
    block = GradientRing.numel_for(model.block_layouts)
    boundary = sizes.micro_batch_tokens * model.hidden
    on_disk, weights = records_on_disk(model, sizes, dtype), weights_on_disk(model, sizes, dtype)
    state_bytes = {name: LayerState.bytes_needed(layout, sizes.moment_dtype) for name, layout in model.layouts.items()}
    on_device = [state_bytes[unit] for unit in _on_device(model, sizes)]
    ends = (
        0 if sizes.resident_ends else model.layouts[model.head].trained_numel + model.layouts[model.shell].trained_numel
    )
    return {
        "weights and optimizer state": sum(state_bytes.values())
        - sum(on_disk.values())
        - sum(weights.values())
        - sum(on_device),
        "disk buffers": RecordRing.bytes_needed(on_disk, sizes.disk_buffers, weights)
        + DiskStaging.bytes_needed(weights, sizes.staging_buffers),
        "way out of the device": WayOut.bytes_needed(on_device),
        "gradients": GradientRing.host_bytes_needed(block, sizes.slots_for(n), dtype) + ends * dtype.itemsize,
        "embedding rows": TokenFeed.bytes_needed(min(sizes.step_tokens, model.vocabulary))
        if sizes.resident_ends and model.layouts[model.embedding].trained_numel
        else EmbeddingTable.host_bytes_needed(model.vocabulary, model.embedding_width, sizes.step_tokens, dtype),
        "activations": ActivationStore.host_bytes_needed(
            sizes.boundaries_on_host(n) - sizes.boundaries_on_disk(n), sizes.micro_batches, boundary, dtype.itemsize
        )
        + BoundariesOnDisk.host_bytes_needed(
            sizes.boundaries_on_disk(n), sizes.micro_batches, boundary * dtype.itemsize, sizes.staging_buffers
        ),
        "kept outputs": HostOutputs.host_bytes_needed(sizes.forwards_on_host(n), sizes.host_output_bytes),
        "token ids": TokenFeed.bytes_needed(sizes.step_indices),
        "checkpoint copies": SnapshotMemory.bytes_needed(state_bytes.values(), sizes.snapshot_units),
    }


def resident_bytes(model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> int:
    """Device memory of the states that live there. Beside each waits the gradient of what is no block, and clipped that
    of blocks, too."""
    units = _on_device(model, sizes)
    states = sum(LayerState.bytes_needed(model.layouts[unit], sizes.moment_dtype) for unit in units)
    waiting = [unit for unit in units if unit not in model.blocks or sizes.resident_gradients]
    gradients = sum(model.layouts[unit].trained_numel for unit in waiting if unit != model.embedding) * dtype.itemsize
    if model.embedding in units:
        rows, table = min(sizes.step_tokens, model.vocabulary), model.layouts[model.embedding].trained_numel
        gradients += DeviceTable.device_bytes_needed(table, model.embedding_width, rows)
    return states + gradients


def _on_device(model: ModelSizes, sizes: Sizes) -> list[str]:
    return units_on_device(model.layouts, model.blocks, sizes.resident, sizes.resident_ends)


def disk_bytes(model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> dict[str, int]:
    """Named files in `budget.offload_dir`."""
    return {
        "optimizer state": DiskFile.bytes_needed(records_on_disk(model, sizes, dtype)),
        "weights": DiskFile.bytes_needed(weights_on_disk(model, sizes, dtype)),
        "activations": DiskFile.bytes_needed(boundaries_on_disk(model.blocks, sizes, model.hidden, dtype)),
    }


def records_on_disk(model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> dict[str, int]:
    """Unit on disk -> bytes of its record, without weights."""
    units = _on_disk(model, sizes)
    return {unit: record_bytes(model.layouts[unit], dtype, sizes.moment_dtype) for unit in units}


def weights_on_disk(model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> dict[str, int]:
    """Unit whose weights are on disk, too -> bytes of these."""
    units = spread(_on_disk(model, sizes), sizes.disk_weight_blocks)
    return {unit: weight_bytes(model.layouts[unit], dtype) for unit in units}


def boundaries_on_disk(blocks: Sequence[str], sizes: Sizes, hidden: int, dtype: torch.dtype) -> dict[str, int]:
    """Boundary on disk -> its bytes."""
    boundary_bytes = sizes.micro_batch_tokens * hidden * dtype.itemsize
    return boundary_records(blocks[: sizes.boundaries_on_disk(len(blocks))], sizes.micro_batches, boundary_bytes)


def _on_disk(model: ModelSizes, sizes: Sizes) -> list[str]:
    return units_on_disk(model.layouts, model.blocks[sizes.resident :], sizes.disk_blocks)


def head_bytes(model: ModelSizes, work: Work, sizes: Sizes, dtype: torch.dtype) -> int:
    """Weight, fp32 gradient and a chunk of logits of the whole head, or of a shard, which meets less of the logits; the
    input of the head and its fp32 gradient then wait for all trained tokens of the step."""
    logits, whole = work.logit_bytes * sizes.head_chunk, model.layouts[model.head].numel
    if sizes.head_shards == 1:
        weight = HeadWeight.bytes_needed(whole, dtype)
        return weight + logits - (whole * dtype.itemsize if sizes.resident_ends else 0)  # it is there already
    shape, shards = (model.vocabulary, -(-whole // model.vocabulary)), sizes.head_shards
    shard = HeadShards.bytes_needed(shape, shards, dtype)
    if sizes.resident_ends:
        shard = shard_rows(model.vocabulary, shards) * shape[1] * 4
    tail = 8 * sizes.head_chunk * shape[1] * dtype.itemsize  # a chunk at the model's norm, forward and backward
    waiting = sizes.step_tokens * (shape[1] * (dtype.itemsize + 4) + STATISTICS_BYTES)
    return shard + logits * shard_rows(model.vocabulary, shards) // model.vocabulary + tail + waiting


def device_bytes(model: ModelSizes, work: Work, sizes: Sizes, dtype: torch.dtype) -> dict[str, dict[str, int]]:
    """Device memory by phase and name; a phase's sum is its peak."""
    size, n = dtype.itemsize, len(model.blocks)
    block = GradientRing.numel_for(model.block_layouts)
    boundary = sizes.micro_batch_tokens * model.hidden
    rows = min(sizes.step_tokens, model.vocabulary) * model.embedding_width
    sliding = model.block_layouts[sizes.resident :]
    always = {
        "resident states": resident_bytes(model, sizes, dtype),
        "weights": LayerWindow.bytes_needed(sliding, sizes.window_depth, dtype)
        + model.layouts[model.shell].numel * size
        + model.layouts[model.shell].trained_numel * 4
        + model.buffer_bytes,
        "gradients": GradientRing.device_bytes_needed(block, dtype, sizes.micro_batches > 1),
        "embedding rows": rows * size,
        "inputs": work.inputs_bytes * sizes.micro_batches * sizes.micro_batch_size
        + TokenFeed.bytes_needed(sizes.step_indices),
        "libraries": work.workspace_bytes,
        "activations": ActivationStore.device_bytes_needed(
            n, sizes.boundaries_on_host(n), sizes.micro_batches, boundary, size
        )
        + sizes.micro_batches * boundary * size,
    }
    sequences = sizes.micro_batches * sizes.micro_batch_size
    kept, outputs = sizes.kept_of(n)
    always["kept for backward"] = sequences * (kept * work.kept_bytes + outputs * work.kept_outputs_bytes)
    always["kept for backward"] += HostOutputs.device_bytes_needed(sizes.forwards_on_host(n), sizes.host_output_bytes)
    block_work = work.block_fixed_bytes + work.block_bytes * sizes.micro_batch_size
    head_work = head_bytes(model, work, sizes, dtype)
    phases = {
        "head and loss": {**always, "head": head_work + boundary * size, "row gradients": rows * 4},
        "backward": {**always, "block": block_work, "row gradients": rows * 4},
    }
    if sizes.head_shards > 1:  # evaluation has the whole head, for all its passes
        waiting = {"activations": 2 * sizes.micro_batches * boundary * size, "kept for backward": 0}
        head = 0 if sizes.resident_ends else model.layouts[model.head].numel * size
        computing = max(block_work, work.logit_bytes * sizes.head_chunk)
        phases["evaluation"] = {**always, **waiting, "head": head, "block": computing}
    if work.answers:
        at_once = min(work.answers.prompts, sequences)
        # Nothing waits for backward then; a forward needs less than the backward that was measured.
        waiting = {"activations": 2 * sizes.micro_batches * boundary * size, "kept for backward": 0}
        head = model.layouts[model.head].numel * size + at_once * model.vocabulary * LOGIT_BYTES
        cache = work.answers.cache.bytes_needed(at_once, work.answers.tokens) if work.answers.cache else 0
        phases["answers"] = {**always, **waiting, "head": head, "block": block_work, "keys and values": cache}
    return phases
