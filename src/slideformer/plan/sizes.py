"""How large an engine's parts are made: what a plan decides."""

from dataclasses import dataclass
from typing import Literal

import torch

from slideformer.memory.host_outputs import HostOutputs
from slideformer.memory.record_ring import BUFFERS

OptimizerState = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of one engine.

    Attributes:
        window_depth: layers whose weights are on the device at once.
        micro_batch_size, micro_batches: sequences computed together, and the most of these groups in a step.
        max_length: tokens of the longest sequence.
        gradient_slots: gradients that may wait on the host for their update.
        host_boundaries: layers (the first ones) whose boundary activations go to host memory.
        disk_boundaries: layers of these (again the first ones) whose boundary activations go on to disk.
        head_chunk: tokens whose logits exist at once.
        kept: layers (the last ones) whose forward is kept whole for backward; the others are recomputed.
        kept_outputs: layers (those before the kept ones) of which the expensive operators' outputs are kept.
        host_outputs: forwards, of a layer over a micro-batch, whose expensive outputs are kept in host memory; spread
            over the layers that are recomputed.
        host_output_bytes: of the outputs of one of these.
        resident: layers (the first ones) whose durable state is in the device's memory, and updated there.
        resident_gradients: whether the gradients of all that is resident may wait on the device for their update.
        resident_ends: whether that of embedding, head and what else is outside the blocks is there, too.
        disk_blocks: layers whose durable state, but for the weights that the device fetches, is on disk.
        disk_weight_blocks: layers of these whose weights are on disk, too.
        disk_buffers: records of these that are in host memory at once.
        optimizer_state: what the optimizer's moments are stored in.
        snapshot_units: units whose state may be held a second time, in host memory, while a checkpoint is written.
        head_shards: shards of the vocabulary in which the head passes the device; 1: it is there as a whole.
    """

    window_depth: int
    micro_batch_size: int
    micro_batches: int
    max_length: int
    gradient_slots: int
    host_boundaries: int
    head_chunk: int
    kept: int = 0
    kept_outputs: int = 0
    host_outputs: int = 0
    host_output_bytes: int = 0
    resident: int = 0
    resident_gradients: bool = False
    resident_ends: bool = False
    disk_boundaries: int = 0
    disk_blocks: int = 0
    disk_weight_blocks: int = 0
    disk_buffers: int = BUFFERS
    optimizer_state: OptimizerState = "fp32"
    snapshot_units: int = 0
    head_shards: int = 1

    @property
    def moment_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.optimizer_state == "bf16" else torch.float32

    @property
    def micro_batch_tokens(self) -> int:
        return self.micro_batch_size * self.max_length

    @property
    def step_tokens(self) -> int:
        return self.micro_batch_tokens * self.micro_batches

    def boundaries_on_host(self, depth: int) -> int:
        """Of `depth` layers, those whose boundaries leave the device; one that is kept whole keeps its input, too."""
        return min(self.host_boundaries, depth - min(self.kept, depth))

    def boundaries_on_disk(self, depth: int) -> int:
        """Of `depth` layers, those whose boundaries leave host memory, too."""
        return min(self.disk_boundaries, self.boundaries_on_host(depth))

    def kept_of(self, depth: int) -> tuple[int, int]:
        """Of `depth` layers: (those that are kept whole, those before them of which the expensive outputs are)."""
        kept = min(self.kept, depth)
        return kept, min(self.kept_outputs, depth - kept)

    def recomputed_forwards(self, depth: int) -> int:
        """Of `depth` layers, over all micro-batches, those of which nothing is kept on the device."""
        return (depth - sum(self.kept_of(depth))) * self.micro_batches

    def forwards_on_host(self, depth: int) -> int:
        """Those of them whose outputs go to host memory."""
        return min(self.host_outputs, self.recomputed_forwards(depth))

    def outputs_on_host(self, depth: int) -> frozenset[tuple[int, int]]:
        """(layer, micro-batch) of these: evenly spread, so that between any two the link has the same time, and the
        first micro-batches of a layer rather than the last, so that the copies are over before forward is."""
        forwards, count = self.recomputed_forwards(depth), self.forwards_on_host(depth)
        chosen = (k for k in range(forwards) if k * count // forwards > (k - 1) * count // forwards)
        return frozenset(divmod(k, self.micro_batches) for k in chosen)

    def share_of_outputs(self, i: int, depth: int) -> float:
        """Of layer i's forwards, those whose expensive outputs are kept, wherever."""
        kept, outputs = self.kept_of(depth)
        if i >= depth - kept - outputs:
            return 1.0 if i < depth - kept else 0.0
        return self.forwards_of_layer_on_host(i, depth) / self.micro_batches

    def forwards_of_layer_on_host(self, i: int, depth: int) -> int:
        """Of layer i, as `outputs_on_host` spreads them."""
        first, forwards, count = i * self.micro_batches, self.recomputed_forwards(depth), self.forwards_on_host(depth)
        if first >= forwards:
            return 0
        return (first + self.micro_batches - 1) * count // forwards - (first - 1) * count // forwards

    def fetched_forwards_of_layer(self, i: int, depth: int) -> int:
        """Of these, those whose outputs come back: the last ones of all are still there."""
        behind = sum(self.forwards_of_layer_on_host(layer, depth) for layer in range(i + 1, depth))
        here = self.forwards_of_layer_on_host(i, depth)
        return here - min(here, max(0, HostOutputs.PLACES - behind))

    def slots_for(self, depth: int) -> int:
        """Gradients of `depth` layers that may wait on the host."""
        return min(self.gradient_slots, depth - min(self.resident, depth))

    @property
    def staging_buffers(self) -> int:
        """Weights, and boundaries, that are in host memory between disk and device at once: one is copied or awaited,
        the others come behind it."""
        return min(self.disk_buffers + 1, BUFFERS)

    @property
    def step_indices(self) -> int:
        """Integers that a step sends to the device: id, row, position and target of each token, and ids of rows; packed
        also each token's place in its document, and where documents begin and end, one more than there are."""
        return 7 * self.step_tokens + self.micro_batches


@dataclass(frozen=True)
class InferenceSizes:
    """The sizes of an engine that only generates.

    Attributes:
        window_depth: layers whose weights are on the device at once.
        group_size, groups: prompts computed together, and the most of these groups answered at once.
        max_length: tokens of the longest sequence that enters in one pass.
    """

    window_depth: int
    group_size: int
    groups: int
    max_length: int

    @property
    def sequences(self) -> int:
        return self.group_size * self.groups

    @property
    def pass_tokens(self) -> int:
        """Of the largest pass."""
        return self.sequences * self.max_length

    @property
    def pass_indices(self) -> int:
        """Integers that a pass sends to the device: id and row of each token, and ids of rows."""
        return 3 * self.pass_tokens
