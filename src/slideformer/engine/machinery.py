"""The parts of a running engine, wired together, and the few named moves a step makes with them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.data.chat import IGNORED
from slideformer.engine.compute import MicroBatch, Weights
from slideformer.engine.durable import DurableState
from slideformer.engine.tape import Level
from slideformer.engine.updates import StepUpdates, Updates
from slideformer.layout import FlatLayout
from slideformer.memory.activations import ActivationStore
from slideformer.memory.device_state import DeviceState
from slideformer.memory.device_table import DeviceTable
from slideformer.memory.disk_state import AllInMemory, RecordRing
from slideformer.memory.embedding import EmbeddingTable
from slideformer.memory.feed import TokenFeed
from slideformer.memory.gradients import Accumulator, GradientRing, HostGradient, copy_async
from slideformer.memory.head import HeadWeight, ResidentHead
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.window import LayerWindow
from slideformer.models.architecture import Decoder
from slideformer.models.packed_attention import Documents
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.sizes import Sizes
from slideformer.streams import Fence, Lanes

EMBEDDING, HEAD, SHELL, UNUSED = "embedding", "head", "shell", "unused"
NEXT_USE_FIRST = -1  # what the next forward needs before block 0
ON_DEVICE_FIRST = -2  # it takes the worker no time


class StepResult:
    """What came of a step; reading it waits for what is not there yet.

    Attributes:
        trained_tokens: tokens that the loss is a mean over.
    """

    def __init__(self, updates: Updates, pending: StepUpdates, trained_tokens: int, device_loss: Tensor, loss: Tensor):
        self._updates = updates
        self.pending = pending
        self.trained_tokens = trained_tokens
        self.device_loss = device_loss
        self._host_loss = loss
        self.landed: Fence | None = None

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the trained tokens. Waits until the step's backward is over."""
        assert self.landed is not None
        self.landed.wait()
        return float(self._host_loss)

    @property
    def grad_norm(self) -> float:
        """Norm of the whole gradient before clipping. Waits for the step's last update."""
        self._updates.wait_done(self.pending)
        assert self.pending.norm is not None
        return self.pending.norm

    @property
    def non_finite(self) -> list[str]:
        """Units whose gradient was not finite, so that the step was left out. Waits for the step's last update."""
        return [] if math.isfinite(self.grad_norm) else self.pending.non_finite

    @property
    def optimizer_seconds(self) -> float:
        """Time the CPU spent in AdamW for this step."""
        return self.pending.busy_seconds

    def send_loss(self) -> None:
        copy_async(self.device_loss, self._host_loss)


class Machinery:
    """Every store and lane of one engine.

    Args:
        states: durable state by unit: the names of the blocks, `EMBEDDING`, `SHELL`, and `HEAD` unless tied; only
            blocks may be on disk, and what is on the device are the first blocks, and all other trained units or none.
        records: where those are.
        dtype: what the device computes in, bfloat16 or float32; gradients cross the link in it.
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
    ):
        self.decoder, self.lanes, self.states, self.sizes = decoder, lanes, states, sizes
        self.head_chunk = sizes.head_chunk
        self.blocks = [states[name] for name in decoder.block_names]
        self.layouts: list[FlatLayout] = [state.layout for state in self.blocks]
        self._learn_where_backward_ends()
        self.updates = Updates(lanes, records, skip=lambda unit: states[unit].counts.skip())
        self.window = LayerWindow(
            lanes,
            self.layouts,
            sizes.window_depth,
            dtype,
            fresh=lambda i: self.updates.fresh(decoder.block_names[i]),
            wait_fresh=lambda i: self.updates.wait_fresh(decoder.block_names[i]),
            copy_weights=lambda i, out: self.blocks[i].copy_weights(out),
            resident=self._resident_blocks(),
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
        boundary = sizes.micro_batch_tokens * decoder.hidden
        self.saved = ActivationStore(
            lanes, allocator, range(sizes.boundaries_on_host(decoder.depth)), sizes.micro_batches, boundary, dtype
        )
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

    def _resident_blocks(self) -> dict[int, DeviceState]:
        return {i: state for i, state in enumerate(self.blocks) if isinstance(state, DeviceState)}

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
        if isinstance(self.table, DeviceTable) and self.decoder.tied:
            self._head_gradient = self.table.gradient
        else:
            self._head_gradient = self._gradient_of(state, "head gradient", allocator, dtype)

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
            copy_weights=copy_shell,
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
        trained = sum(batch.trained_tokens for batch in micro_batches)
        return StepResult(self.updates, pending, trained, loss, self._host_losses[pending.hyper.step % 2])

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
                self.head.fetch()
            else:
                self.window.fetch(i)

    def keeps(self, i: int) -> Level:
        """What of block i's forward is kept for its backward: most of the last blocks, which come first there."""
        kept, outputs = self.sizes.kept_of(self.decoder.depth)
        behind = self.decoder.depth - i
        return "all" if behind <= kept else "outputs" if behind <= kept + outputs else "recompute"

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
            self._submit_head(result, gradient)
        if self.trains_embedding and not tied and isinstance(self.table, EmbeddingTable):
            rest = self.table.update_rest
            self.updates.submit(result.pending, EMBEDDING, NEXT_USE_FIRST, [], lambda hyper: rest(None, hyper))
        return d_rows

    def _submit_head(self, result: StepResult, gradient: Tensor) -> None:
        tied, table = self.decoder.tied, self.table
        waiting, unit = self._head_gradient, EMBEDDING if tied else HEAD
        landed = self.gradients.flush_into(self._index(unit), gradient.view(-1), waiting[: gradient.numel()])
        if not tied:
            state = self.states[HEAD]
            whole = replace(landed, flat=waiting, reached=state.layout.fields)
            self._submit_state(result, state, self.decoder.depth, whole)
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
        self._submit_state(result, state, i, landed)

    def _submit_state(self, result: StepResult, state: DurableState, next_use: int, landed: HostGradient) -> None:
        if isinstance(state, DeviceState):
            self._submit_on_device(result, state, [landed], partial(state.apply, landed.flat, landed.reached))
            return

        def update(hyper: AdamWStep) -> None:
            state.update(landed.flat, landed.reached, hyper)

        self.updates.submit(result.pending, state.name, next_use, [landed], update)

    def _submit_on_device(
        self, result: StepResult, state: DeviceState, landed: list[HostGradient], apply: Callable[..., None]
    ) -> None:
        """Without a norm to wait for, the update follows at once, where the gradient was computed."""
        pending, gates = result.pending, [gradient.device_squares for gradient in landed]
        if pending.max_norm is None:
            for gradient in landed:
                if gradient.copied is not None:
                    self.lanes.compute.wait(gradient.copied)
            self.updates.about_to_change(state.name, pending)
            state.change(self.lanes.compute, apply, pending.hyper, gates)
            self.updates.submit(pending, state.name, ON_DEVICE_FIRST, landed, None)
            return
        on_update_lane = partial(state.change, self.lanes.update, apply)
        self.updates.submit(
            pending, state.name, ON_DEVICE_FIRST, landed, lambda hyper: on_update_lane(hyper, ())
        )  # fmt: skip

    def submit_shell_and_rows(self, result: StepResult, shell: Accumulator, rows: Tensor | None) -> None:
        """Flush what backward ends with: the parameters outside blocks and the embedding rows."""
        self._shell_window.release(0)
        self._shell_window.invalidate(0)
        landed = self.gradients.flush_into(self._index(SHELL), shell.flat, self._shell_gradient, shell.reached)
        self._submit_state(result, self.states[SHELL], NEXT_USE_FIRST, landed)
        if rows is not None:
            landed_rows = self.table.flush_rows(self.gradients, len(self.states), rows)
            self._submit_rows(result, landed_rows)

    def _submit_rows(self, result: StepResult, landed: HostGradient) -> None:
        table, tied = self.table, self.decoder.tied
        if isinstance(table, DeviceTable):
            both = [self._tied_head_landed, landed] if tied else [landed]
            self._submit_on_device(result, table.state, both, partial(table.apply, tied, table.device_row_ids))
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


def documents_on(batch: Batch, device: torch.device) -> Documents | None:
    """The documents of packed rows, sent at once."""
    if batch.documents is None:
        return None
    positions, bounds = (tensor.to(device) for tensor in batch.places())
    return Documents(positions, bounds, batch.spans)


def _pieces(batch: Batch, row_of: Tensor) -> list[Tensor]:
    """The integers of one micro-batch: ids, rows, trained positions and their targets; packed, places in documents."""
    positions = (batch.targets.flatten() != IGNORED).nonzero().flatten()
    targets = batch.targets.flatten()[positions]
    places = batch.places() if batch.documents else ()
    return [batch.input_ids, row_of.view(batch.input_ids.shape), positions, targets, *places]


def _arrived(batch: Batch, pieces: list[Tensor], seed: int) -> MicroBatch:
    ids, row_of, positions, targets, *places = pieces
    documents = Documents(places[0], places[1], batch.spans) if places else None
    return MicroBatch(ids, row_of, positions, targets, seed, documents)


class HasRows(Protocol):
    """An embedding whose rows can be sent to the device."""

    @property
    def row_ids(self) -> Tensor: ...

    def gather(self, token_ids: Tensor) -> tuple[Tensor, Tensor]: ...


def send_batches(
    micro_batches: list[Batch], seeds: list[int], table: HasRows, token_feed: TokenFeed
) -> tuple[list[MicroBatch], Tensor, Tensor]:
    """Micro-batches on the device, the embedding rows they use [u, width] and those rows' ids [u]."""
    rows, row_of = table.gather(torch.cat([batch.input_ids.flatten() for batch in micro_batches]))
    rows_of_each = row_of.split([batch.input_ids.numel() for batch in micro_batches])
    pieces = [_pieces(batch, of) for batch, of in zip(micro_batches, rows_of_each, strict=True)]
    row_ids, *sent = token_feed.send([table.row_ids, *chain.from_iterable(pieces)])
    arrived = iter(sent)
    arrived_of_each = [[next(arrived) for _ in sent_of_one] for sent_of_one in pieces]
    return list(map(_arrived, micro_batches, arrived_of_each, seeds)), rows, row_ids
