"""The parts of a running engine, wired together, and the few named moves a step makes with them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.engine.block_weights import BlockWeights
from slideformer.engine.compute import MicroBatch, Weights
from slideformer.engine.durable import DurableState
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
from slideformer.memory.device_table import DeviceTable
from slideformer.memory.embedding import EmbeddingTable, take_shard_rows
from slideformer.memory.feed import TokenFeed
from slideformer.memory.gradients import Accumulator, GradientRing, HostGradient
from slideformer.memory.head import HeadWeight, ResidentHead, zeroed
from slideformer.memory.head_shards import HeadShards, ResidentHeadShards
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.host_outputs import HostOutputs
from slideformer.memory.record_ring import AllInMemory, RecordRing
from slideformer.memory.window import LayerWindow
from slideformer.models.architecture import Decoder
from slideformer.plan.sizes import Sizes
from slideformer.storage.disk import DiskFile

EMBEDDING, HEAD, SHELL, UNUSED = "embedding", "head", "shell", "unused"
NEXT_USE_FIRST = -1  # what the next forward needs before block 0


class Machinery:
    """Every store and lane of one engine.

    Args:
        states: durable state by unit: the names of the blocks, `EMBEDDING`, `SHELL`, and `HEAD` unless tied; only
            blocks may be on disk, and what is on the device are the first blocks, and all other trained units or none.
        records: where those are.
        dtype: what the device computes in, bfloat16 or float32; gradients cross the link in it.
        boundary_file: for the boundaries that `sizes` puts on disk.
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
        self._learn_where_backward_ends()
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
        self.table = self._table(allocator, dtype)
        self._held_gradients = {
            i: torch.zeros(state.layout.trained_numel, dtype=dtype, device=lanes.device)
            for i, state in self._resident_blocks().items()
            if sizes.resident_gradients
        }
        self._wire_head(allocator, dtype)
        self._wire_shell(allocator, dtype)
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

    def _table(self, allocator: HostAllocator, dtype: torch.dtype) -> EmbeddingTable | DeviceTable:
        state, rows, padding = self.states[EMBEDDING], self.sizes.step_tokens, self.decoder.padding_row
        if isinstance(state, DeviceState):
            return DeviceTable(self.lanes, allocator, state, rows, padding)
        assert isinstance(state, LayerState), "the embedding is on disk"
        return EmbeddingTable(self.lanes, allocator, state, rows, dtype, padding)

    def _wire_head(self, allocator: HostAllocator, dtype: torch.dtype) -> None:
        unit = EMBEDDING if self.decoder.tied else HEAD
        state, shape = self.states[unit], self.decoder.head_shape
        if isinstance(state, DeviceState):
            self.head: HeadWeight | ResidentHead = ResidentHead(self.lanes, shape, state)
        else:
            fresh, wait_fresh = partial(self.updates.fresh, unit), partial(self.updates.wait_fresh, unit)
            self.head = HeadWeight(
                self.lanes, shape, state.layout.numel, dtype, fresh, wait_fresh, state.copy_weights
            )  # fmt: skip
        self.head_shards = self._shards_of_head(state, partial(self.updates.wait_fresh, unit), dtype)
        if isinstance(self.table, DeviceTable) and self.decoder.tied:
            self._head_gradient = self.table.gradient
        else:
            self._head_gradient = self._gradient_of(state, "head gradient", allocator, dtype)

    def _shards_of_head(
        self, state: DurableState, wait_fresh: Callable[[], None], dtype: torch.dtype
    ) -> HeadShards | ResidentHeadShards | None:
        shape, shards = self.decoder.head_shape, self.sizes.head_shards
        if shards == 1:
            return None
        if isinstance(self.head, ResidentHead):
            return ResidentHeadShards(self.head, shape[0], shards)
        assert isinstance(state, LayerState), "the head is on disk"
        return HeadShards(self.lanes, shape, shards, dtype, wait_fresh, state.copy_part)

    def _gradient_of(self, state: DurableState, name: str, allocator: HostAllocator, dtype: torch.dtype) -> Tensor:
        """Where the gradient of a unit that is no block waits for its update, beside its state."""
        numel = state.layout.trained_numel
        if isinstance(state, DeviceState):
            return torch.zeros(numel, dtype=dtype, device=self.lanes.device)
        return allocator.empty(name, (numel,), dtype, pinned=True)

    def _wire_shell(self, allocator: HostAllocator, dtype: torch.dtype) -> None:
        state = self.states[SHELL]

        def copy_shell(_: int, out: Tensor) -> None:
            state.copy_weights(out)

        self._shell_window = LayerWindow(
            self.lanes,
            [state.layout],
            1,
            dtype,
            fresh=lambda _: self.updates.fresh(SHELL),
            wait_fresh=lambda _: self.updates.wait_fresh(SHELL),
            copy_of=lambda _: copy_shell,
            resident={0: state} if isinstance(state, DeviceState) else {},
        )
        trained = state.layout.trained_numel
        self._shell_sum = torch.empty(trained, dtype=torch.float32, device=self.lanes.device)
        self._shell_gradient = self._gradient_of(state, "shell gradient", allocator, dtype)

    def _learn_where_backward_ends(self) -> None:
        """Below `lowest` no block takes part in backward: nothing there is trained."""
        frozen = self.decoder.frozen
        self.trains_embedding, self.trains_head = (
            name not in frozen for name in (self.decoder.embedding_name, self.decoder.head_name)
        )
        self.trains_entry = self.trains_embedding or not self.decoder.entry_names <= frozen
        trained = [i for i, layout in enumerate(self.layouts) if layout.trained_fields]
        self.lowest = 0 if self.trains_entry else min(trained, default=self.decoder.depth)

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
        return send_batches(micro_batches, seeds, self.table, self._token_feed)

    def hidden_shape(self, batch: MicroBatch) -> torch.Size:
        b, t = batch.input_ids.shape
        return self.decoder.boundary.of(b, t)

    def fetch(self, layers: Iterable[int]) -> None:
        """Start bringing blocks, and what stands behind the last one, the head, to the device."""
        for i in layers:
            if i == self.decoder.depth:
                if self.head_shards is None:
                    self.head.fetch()
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

    def fetch_shell(self) -> Weights:
        self._shell_window.fetch(0)
        return self._shell_window.layer(0)

    def release_shell(self) -> None:
        """Forward-only use of the shell is over."""
        self._shell_window.release(0)

    def new_head_gradient(self) -> Tensor | None:
        """A zeroed fp32 gradient [vocabulary, width], if the head is trained."""
        return self.head.new_gradient() if self.trains_head else None

    def open_shell_gradient(self) -> Accumulator:
        return Accumulator(self.states[SHELL].layout, self._shell_sum)

    def needs_dx(self, i: int) -> bool:
        """Whether anything below block i is trained."""
        return i > self.lowest or self.trains_entry

    def submit_head(self, result: StepResult, gradient: Tensor | None, row_ids: Tensor) -> Tensor | None:
        """Flush the head's gradient and queue what can be updated of head and embedding; opens the rows' gradient."""
        tied, d_rows = self.decoder.tied, None
        if self.trains_embedding:
            d_rows = self.table.open_gradient(row_ids, gradient if tied else None)
        if gradient is not None:
            waiting = self._head_gradient[: gradient.numel()]
            self._submit_head(result, self.gradients.flush_into(self._head_unit, gradient.view(-1), waiting))
        self._submit_rest(result)
        return d_rows

    @property
    def _head_unit(self) -> int:
        return self._index(EMBEDDING if self.decoder.tied else HEAD)

    def open_head_shards(self, row_ids: Tensor) -> Tensor | None:
        """As `submit_head` opens the rows' gradient; the head's follows shard by shard."""
        if self.trains_head:
            self.gradients.begin_pieces(self._head_unit)
        return self.table.open_gradient(row_ids, None) if self.trains_embedding else None

    def new_shard_gradient(self, rows: int) -> Tensor | None:
        """A zeroed fp32 gradient [rows, width], if the head is trained."""
        return zeroed(self.lanes, (rows, self.decoder.head_shape[1])) if self.trains_head else None

    def submit_head_shard(self, first: int, gradient: Tensor | None, row_ids: Tensor, d_rows: Tensor | None) -> None:
        """Flush a shard's gradient [rows, width], the vocabulary's entries from `first` on; tied, what is of the step's
        rows is moved to `d_rows`."""
        if gradient is None:
            return
        rows, width = gradient.shape
        if self.decoder.tied and d_rows is not None:
            edges = torch.tensor([first, first + rows])
            start, stop = torch.searchsorted(self.table.row_ids, edges).tolist()
            self.lanes.compute.run(take_shard_rows, gradient, first, row_ids[start:stop], d_rows[start:stop])
        destination = self._head_gradient[first * width : (first + rows) * width]
        self.gradients.send_pieces(self._head_unit, gradient.view(-1), destination)

    def close_head_shards(self, result: StepResult) -> None:
        """Queue what can be updated of head and embedding."""
        if self.trains_head:
            whole = self._head_gradient[: math.prod(self.decoder.head_shape)]
            self._submit_head(result, self.gradients.landing(self._head_unit, whole, lambda: None, ()))
        self._submit_rest(result)

    def _submit_rest(self, result: StepResult) -> None:
        """Of an embedding of its own the rows that the step did not read, whose gradient is zero."""
        if self.trains_embedding and not self.decoder.tied and isinstance(self.table, EmbeddingTable):
            rest = self.table.update_rest
            self.updates.submit(result.pending, EMBEDDING, NEXT_USE_FIRST, [], lambda hyper: rest(None, hyper))

    def _submit_head(self, result: StepResult, landed: HostGradient) -> None:
        tied, table, waiting = self.decoder.tied, self.table, self._head_gradient
        if not tied:
            state = self.states[HEAD]
            whole = replace(landed, flat=waiting, reached=state.layout.fields)
            self._submission.submit(result.pending, state, self.decoder.depth, whole)
        elif isinstance(table, DeviceTable):
            self._tied_head_landed = landed  # its update follows with the rows'
        else:
            update = partial(table.update_rest, waiting)
            self.updates.submit(result.pending, EMBEDDING, NEXT_USE_FIRST, [landed], update)

    def submit_block(self, result: StepResult, i: int, gradient: Accumulator) -> None:
        """Flush block i's gradient and queue its update; what the window holds of the block is no longer used."""
        state = self.blocks[i]
        if not state.layout.trained_fields:
            return
        self.window.invalidate(i)
        if isinstance(state, DeviceState):
            waits = result.pending.max_norm is not None
            buffer = self._held_gradients[i] if waits else None
            landed = self.gradients.hold(self._index(state.name), gradient, buffer)
        else:
            landed = self.gradients.flush(self._index(state.name), gradient)
        self._submission.submit(result.pending, state, i, landed)

    def submit_shell_and_rows(self, result: StepResult, shell: Accumulator, rows: Tensor | None) -> None:
        """Flush what backward ends with: the parameters outside blocks and the embedding rows."""
        self._shell_window.release(0)
        self._shell_window.invalidate(0)
        landed = self.gradients.flush_into(self._index(SHELL), shell.flat, self._shell_gradient, shell.reached)
        self._submission.submit(result.pending, self.states[SHELL], NEXT_USE_FIRST, landed)
        if rows is not None:
            landed_rows = self.table.flush_rows(self.gradients, len(self.states), rows)
            self._submit_rows(result, landed_rows)

    def _submit_rows(self, result: StepResult, landed: HostGradient) -> None:
        table, tied = self.table, self.decoder.tied
        if isinstance(table, DeviceTable):
            both = [self._tied_head_landed, landed] if tied else [landed]
            self._submission.submit_on_device(
                result.pending, table.state, both, partial(table.apply, tied, table.device_row_ids)
            )
        else:
            self.updates.submit(result.pending, EMBEDDING, NEXT_USE_FIRST, [landed], table.update_rows)

    def close(self, result: StepResult) -> StepResult:
        """Everything of the step has been submitted."""
        self.lanes.d2h.run(result.send_loss)  # this lane has waited for the gradients, which come behind the loss
        result.landed = self.lanes.d2h.record()
        self.updates.close(result.pending)
        return result

    def _index(self, unit: str) -> int:
        return list(self.states).index(unit)
