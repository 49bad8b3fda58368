"""The parts of a running engine, wired together, and the few named moves a step makes with its blocks; those with what
is outside the blocks are in `ends`."""

from collections.abc import Iterable

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.engine.block_weights import BlockWeights
from slideformer.engine.compute import MicroBatch
from slideformer.engine.durable import DurableState
from slideformer.engine.ends import Ends
from slideformer.engine.layouts import EMBEDDING
from slideformer.engine.send_batches import send_batches
from slideformer.engine.step_result import StepResult
from slideformer.engine.submission import Submission
from slideformer.engine.tape import Level
from slideformer.engine.updates import StepUpdates, Updates
from slideformer.lanes.lanes import Lanes
from slideformer.layout import FlatLayout
from slideformer.memory.activations import ActivationStore
from slideformer.memory.boundaries_on_disk import BoundariesOnDisk
from slideformer.memory.device_state import DeviceState
from slideformer.memory.feed import TokenFeed
from slideformer.memory.gradients import Accumulator, GradientRing
from slideformer.memory.host import HostAllocator
from slideformer.memory.host_outputs import HostOutputs
from slideformer.memory.record_ring import AllInMemory, RecordRing
from slideformer.memory.window import LayerWindow
from slideformer.models.architecture import Decoder
from slideformer.plan.sizes import Sizes
from slideformer.storage.disk import DiskFile


class Machinery:
    """Every store and lane of one engine.

    Args:
        states: durable state by unit: the names of the blocks, `EMBEDDING`, `SHELL`, and `HEAD` unless tied; only
            blocks may be on disk, and what is on the device are the first blocks, and all other trained units or none.
        records: where those are.
        dtype: what the device computes in, bfloat16 or float32; gradients cross the link in it.
        boundary_file: for the boundaries that `sizes` puts on disk.

    Attributes:
        ends: what is outside the blocks.
        lowest: below this block no block takes part in backward: nothing there is trained.
    """

    def __init__(
        self,
        decoder: Decoder,
        lanes: Lanes,
        allocator: HostAllocator,
        states: dict[str, DurableState],
        records: RecordRing | AllInMemory,
        sizes: Sizes,
        dtype: torch.dtype,
        boundary_file: DiskFile | None = None,
    ):
        self.decoder, self.lanes, self.states, self.sizes = decoder, lanes, states, sizes
        self.head_chunk = sizes.head_chunk
        self.blocks = [states[name] for name in decoder.block_names]
        self.layouts: list[FlatLayout] = [state.layout for state in self.blocks]
        self.updates = Updates(lanes, records, skip=lambda unit: states[unit].counts.skip())
        self._submission = Submission(lanes, self.updates)
        weights = BlockWeights(self.blocks, self.updates, records, allocator, dtype, sizes.staging_buffers)
        self.window = LayerWindow(
            lanes,
            self.layouts,
            sizes.window_depth,
            dtype,
            weights.fresh,
            weights.wait_fresh,
            weights.copy_of,
            self._resident_blocks(),
            weights,
        )
        self.gradients = GradientRing(
            lanes,
            allocator,
            GradientRing.numel_for(self.layouts),
            sizes.slots_for(decoder.depth),
            dtype,
            accumulate=sizes.micro_batches > 1,
            units=len(states) + 1,  # the embedding has two: rows and rest
            wait_until=self.updates.worker.wait_until,
        )
        self.saved = self._boundaries(boundary_file, allocator, dtype)
        self._outputs_on_host = sizes.outputs_on_host(decoder.depth)
        self.outputs = HostOutputs(lanes, allocator, self._outputs_on_host, sizes.host_output_bytes)
        self.ends = Ends(decoder, lanes, allocator, states, sizes, dtype, self.updates, self.gradients)
        self.lowest = self._where_backward_ends()
        self._held_gradients = {
            i: torch.zeros(state.layout.trained_numel, dtype=dtype, device=lanes.device)
            for i, state in self._resident_blocks().items()
            if sizes.resident_gradients
        }
        self._token_feed = TokenFeed(lanes, allocator, sizes.step_indices)
        self._host_losses = allocator.empty("losses", (2,), torch.float32, pinned=True)
        self._results: list[StepResult | None] = [None, None]  # whose losses these are

    def _resident_blocks(self) -> dict[int, DeviceState]:
        return {i: state for i, state in enumerate(self.blocks) if isinstance(state, DeviceState)}

    def _boundaries(self, file: DiskFile | None, allocator: HostAllocator, dtype: torch.dtype) -> ActivationStore:
        sizes, decoder, on_disk = self.sizes, self.decoder, None
        boundary = sizes.micro_batch_tokens * decoder.hidden
        if file is not None:
            names = decoder.block_names[: sizes.boundaries_on_disk(decoder.depth)]
            boundary_bytes = boundary * dtype.itemsize
            on_disk = BoundariesOnDisk(
                file, names, sizes.micro_batches, boundary_bytes, allocator, sizes.staging_buffers
            )  # fmt: skip
        off_device = range(sizes.boundaries_on_host(decoder.depth))
        return ActivationStore(self.lanes, allocator, off_device, sizes.micro_batches, boundary, dtype, on_disk)

    def _where_backward_ends(self) -> int:
        trained = [i for i, layout in enumerate(self.layouts) if layout.trained_fields]
        return 0 if self.ends.trains_entry else min(trained, default=self.decoder.depth)

    # ---- the moves of a step

    def begin(self, micro_batches: list[Batch], pending: StepUpdates) -> StepResult:
        """A result to fill; its loss starts at zero."""
        loss = torch.empty((), dtype=torch.float32, device=self.lanes.device)
        self.lanes.compute.run(loss.zero_)
        depth = self.decoder.depth
        self.window.expect([*range(depth), *reversed(range(self.lowest, depth - self.window.depth))])
        trained = sum(batch.trained_tokens for batch in micro_batches)
        return self._new_result(pending, trained, loss)

    def _new_result(self, pending: StepUpdates, trained: int, loss: Tensor) -> StepResult:
        slot = pending.hyper.step % 2
        if (before := self._results[slot]) is not None:
            before.settle()
        found = self._results[slot] = StepResult(self.updates, pending, trained, loss, self._host_losses[slot])
        return found

    def feed(self, micro_batches: list[Batch], seed: int) -> tuple[list[MicroBatch], Tensor, Tensor]:
        """Token ids and the embedding rows they use, on the device: (micro-batches, rows [u, width], row ids [u])."""
        self.updates.wait_fresh(EMBEDDING)
        depth = self.decoder.depth
        seeds = [(seed * self.sizes.micro_batches + m) * (depth + 1) for m in range(len(micro_batches))]
        return send_batches(micro_batches, seeds, self.ends.table, self._token_feed)

    def hidden_shape(self, batch: MicroBatch) -> torch.Size:
        b, t = batch.input_ids.shape
        return self.decoder.boundary.of(b, t)

    def fetch(self, layers: Iterable[int]) -> None:
        """Start bringing blocks, and what stands behind the last one, the head, to the device."""
        for i in layers:
            if i == self.decoder.depth:
                self.ends.fetch_head()
            else:
                self.window.fetch(i)

    def keeps(self, i: int, m: int) -> Level:
        """What of block i's forward over micro-batch m is kept for its backward: most of the last blocks, which come
        first there, and of others where the link has room."""
        kept, outputs = self.sizes.kept_of(self.decoder.depth)
        behind = self.decoder.depth - i
        if behind <= kept:
            return "all"
        return "outputs" if behind <= kept + outputs or (i, m) in self._outputs_on_host else "recompute"

    def needs_dx(self, i: int) -> bool:
        """Whether anything below block i is trained."""
        return i > self.lowest or self.ends.trains_entry

    def submit_block(self, result: StepResult, i: int, gradient: Accumulator) -> None:
        """Flush block i's gradient and queue its update; what the window holds of the block is no longer used."""
        state = self.blocks[i]
        if not state.layout.trained_fields:
            return
        self.window.invalidate(i)
        unit = list(self.states).index(state.name)
        if isinstance(state, DeviceState):
            waits = result.pending.max_norm is not None
            buffer = self._held_gradients[i] if waits else None
            landed = self.gradients.hold(unit, gradient, buffer)
        else:
            landed = self.gradients.flush(unit, gradient)
        self._submission.submit(result.pending, state, i, landed)

    def close(self, result: StepResult) -> StepResult:
        """Everything of the step has been submitted."""
        self.lanes.d2h.run(result.send_loss)  # this lane has waited for the gradients, which come behind the loss
        result.landed = self.lanes.d2h.record()
        self.updates.close(result.pending)
        return result
