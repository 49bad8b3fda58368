"""The parts of a running engine, wired together, and the few named moves a step makes with them."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.data.chat import IGNORED
from slideformer.engine.compute import MicroBatch, Weights
from slideformer.engine.updates import StepUpdates, Updates
from slideformer.layout import FlatLayout
from slideformer.memory.activations import ActivationStore
from slideformer.memory.embedding import EmbeddingTable
from slideformer.memory.feed import TokenFeed
from slideformer.memory.gradients import Accumulator, GradientRing, copy_async
from slideformer.memory.head import HeadWeight
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.window import LayerWindow
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.sizes import Sizes
from slideformer.streams import Fence, Lanes

EMBEDDING, HEAD, SHELL = "embedding", "head", "shell"
NEXT_USE_FIRST = -1  # what the next forward needs before block 0


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
    def optimizer_seconds(self) -> float:
        """Time the CPU spent in AdamW for this step."""
        return self.pending.busy_seconds

    def send_loss(self) -> None:
        copy_async(self.device_loss, self._host_loss)


class Machinery:
    """Every store and lane of one engine.

    Args:
        states: durable state by unit: the names of the blocks, `EMBEDDING`, `SHELL`, and `HEAD` unless tied.
        dtype: what the device computes in, bfloat16 or float32; gradients cross the link in it.
    """

    def __init__(
        self,
        decoder: Decoder,
        lanes: Lanes,
        allocator: HostAllocator,
        states: dict[str, LayerState],
        sizes: Sizes,
        dtype: torch.dtype,
    ):
        self.decoder, self.lanes, self.states, self.sizes = decoder, lanes, states, sizes
        self.head_chunk = sizes.head_chunk
        self.blocks = [states[name] for name in decoder.block_names]
        self.layouts: list[FlatLayout] = [state.layout for state in self.blocks]
        self.updates = Updates(lanes)
        self.window = LayerWindow(
            lanes,
            self.layouts,
            sizes.window_depth,
            dtype,
            fresh=lambda i: self.updates.fresh(decoder.block_names[i]),
            wait_fresh=lambda i: self.updates.wait_fresh(decoder.block_names[i]),
            copy_weights=lambda i, out: self.blocks[i].copy_weights(out),
        )
        self.gradients = GradientRing(
            lanes,
            allocator,
            max(layout.numel for layout in self.layouts),
            sizes.gradient_slots,
            dtype,
            accumulate=sizes.micro_batches > 1,
            units=len(states) + 1,  # the embedding has two: rows and rest
            wait_until=self.updates.worker.wait_until,
        )
        boundary = sizes.micro_batch_tokens * decoder.hidden
        self.saved = ActivationStore(
            lanes, allocator, range(sizes.boundaries_on_host(decoder.depth)), sizes.micro_batches, boundary, dtype
        )
        self.table = EmbeddingTable(lanes, allocator, states[EMBEDDING], sizes.step_tokens, dtype, decoder.padding_row)
        self._wire_head(allocator, dtype)
        self._wire_shell(allocator, dtype)
        self._token_feed = TokenFeed(lanes, allocator, sizes.step_indices)
        self._host_losses = allocator.empty("losses", (2,), torch.float32, pinned=True)

    def _wire_head(self, allocator: HostAllocator, dtype: torch.dtype) -> None:
        unit = EMBEDDING if self.decoder.tied else HEAD
        state = self.states[unit]
        self.head = HeadWeight(
            self.lanes,
            self.decoder.head_shape,
            state.layout.numel,
            dtype,
            fresh=lambda: self.updates.fresh(unit),
            wait_fresh=lambda: self.updates.wait_fresh(unit),
            copy_weights=state.copy_weights,
        )
        self._head_gradient = allocator.empty("head gradient", (state.layout.numel,), dtype, pinned=True)

    def _wire_shell(self, allocator: HostAllocator, dtype: torch.dtype) -> None:
        state = self.states[SHELL]
        self._shell_window = LayerWindow(
            self.lanes,
            [state.layout],
            1,
            dtype,
            fresh=lambda _: self.updates.fresh(SHELL),
            wait_fresh=lambda _: self.updates.wait_fresh(SHELL),
            copy_weights=lambda _, out: state.copy_weights(out),
        )
        self._shell_sum = torch.empty(state.layout.numel, dtype=torch.float32, device=self.lanes.device)
        self._shell_gradient = allocator.empty("shell gradient", (state.layout.numel,), dtype, pinned=True)

    # ---- the moves of a step

    def begin(self, micro_batches: list[Batch], hyper: AdamWStep, max_norm: float | None) -> StepResult:
        """A result to fill; its loss starts at zero."""
        loss = torch.empty((), dtype=torch.float32, device=self.lanes.device)
        self.lanes.compute.run(loss.zero_)
        trained = sum(batch.trained_tokens for batch in micro_batches)
        return StepResult(self.updates, StepUpdates(hyper, max_norm), trained, loss, self._host_losses[hyper.step % 2])

    def feed(self, micro_batches: list[Batch], seed: int) -> tuple[list[MicroBatch], Tensor, Tensor]:
        """Token ids and the embedding rows they use, on the device: (micro-batches, rows [u, width], row ids [u])."""
        self.updates.wait_fresh(EMBEDDING)
        depth = self.decoder.depth
        seeds = [(seed * self.sizes.micro_batches + m) * (depth + 1) for m in range(len(micro_batches))]
        return send_batches(micro_batches, seeds, self.table, self._token_feed)

    def hidden_shape(self, batch: MicroBatch) -> torch.Size:
        return torch.Size((*batch.input_ids.shape, self.decoder.hidden))

    def fetch(self, layers: Iterable[int]) -> None:
        """Start bringing blocks, and what stands behind the last one, the head, to the device."""
        for i in layers:
            if i == self.decoder.depth:
                self.head.fetch()
            else:
                self.window.fetch(i)

    def keeps(self, i: int) -> bool:
        """Whether block i's forward is kept for its backward: the last blocks, which come first there."""
        return i >= self.decoder.depth - self.sizes.kept

    def fetch_shell(self) -> Weights:
        self._shell_window.fetch(0)
        return self._shell_window.layer(0)

    def release_shell(self) -> None:
        """Forward-only use of the shell is over."""
        self._shell_window.release(0)

    def open_shell_gradient(self) -> Accumulator:
        return Accumulator(self.states[SHELL].layout, self._shell_sum)

    def submit_head(self, result: StepResult, gradient: Tensor, row_ids: Tensor) -> Tensor:
        """Flush the head's gradient and queue what can be updated of head and embedding; opens the rows' gradient."""
        tied = self.decoder.tied
        d_rows = self.table.open_gradient(row_ids, gradient if tied else None)
        host, unit = self._head_gradient, EMBEDDING if tied else HEAD
        landed = self.gradients.flush_into(self._index(unit), gradient.view(-1), host[: gradient.numel()])
        submit, pending = self.updates.submit, result.pending
        if tied:
            submit(pending, EMBEDDING, NEXT_USE_FIRST, [landed], lambda hyper: self.table.update_rest(host, hyper))
        else:
            head = self.states[HEAD].adam
            submit(pending, HEAD, self.decoder.depth, [landed], lambda hyper: head.step(host, hyper))
            submit(pending, EMBEDDING, NEXT_USE_FIRST, [], lambda hyper: self.table.update_rest(None, hyper))
        return d_rows

    def submit_block(self, result: StepResult, i: int, gradient: Accumulator) -> None:
        """Flush block i's gradient and queue its update; what the window holds of the block is no longer used."""
        self.window.invalidate(i)
        state = self.blocks[i]
        landed = self.gradients.flush(self._index(state.name), gradient)
        self.updates.submit(result.pending, state.name, i, [landed], lambda hyper: state.adam.step(landed.flat, hyper))

    def submit_shell_and_rows(self, result: StepResult, shell: Accumulator, rows: Tensor) -> None:
        """Flush what backward ends with: the parameters outside blocks and the embedding rows."""
        self._shell_window.release(0)
        self._shell_window.invalidate(0)
        state = self.states[SHELL]
        landed = self.gradients.flush_into(self._index(SHELL), shell.flat, self._shell_gradient)
        submit, pending = self.updates.submit, result.pending
        submit(pending, SHELL, NEXT_USE_FIRST, [landed], lambda hyper: state.adam.step(landed.flat, hyper))
        landed_rows = self.table.flush_rows(self.gradients, len(self.states), rows)
        submit(pending, EMBEDDING, NEXT_USE_FIRST, [landed_rows], self.table.update_rows)

    def close(self, result: StepResult) -> StepResult:
        """Everything of the step has been submitted."""
        self.lanes.d2h.run(result.send_loss)  # this lane has waited for the gradients, which come behind the loss
        result.landed = self.lanes.d2h.record()
        self.updates.close(result.pending)
        return result

    def _index(self, unit: str) -> int:
        return list(self.states).index(unit)


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
    pieces = [table.row_ids]
    for batch, of in zip(micro_batches, row_of.split([b.input_ids.numel() for b in micro_batches]), strict=True):
        positions = (batch.targets.flatten() != IGNORED).nonzero().flatten()
        targets = batch.targets.flatten()[positions]
        pieces += [batch.input_ids, of.view(batch.input_ids.shape), positions, targets]
    row_ids, *sent = token_feed.send(pieces)
    pieces_of_each = zip(sent[0::4], sent[1::4], sent[2::4], sent[3::4], seeds, strict=True)
    return [MicroBatch(*given) for given in pieces_of_each], rows, row_ids
