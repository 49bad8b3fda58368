"""What is outside the blocks while it trains: embedding table, head, and the shell, which is all the rest."""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from slideformer.engine.durable import DurableState
from slideformer.engine.forward import ForwardEnds
from slideformer.engine.layouts import EMBEDDING, HEAD, SHELL
from slideformer.engine.step_result import StepResult
from slideformer.engine.submission import Submission
from slideformer.engine.updates import Updates
from slideformer.lanes.lanes import Lanes
from slideformer.memory.device_state import DeviceState
from slideformer.memory.device_table import DeviceTable
from slideformer.memory.embedding import EmbeddingTable, take_shard_rows
from slideformer.memory.gradients import Accumulator, GradientRing, HostGradient
from slideformer.memory.head import HeadWeight, ResidentHead, zeroed
from slideformer.memory.head_shards import HeadShards, ResidentHeadShards
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.window import LayerWindow
from slideformer.models.architecture import Decoder
from slideformer.plan.sizes import Sizes

NEXT_USE_FIRST = -1  # what the next forward needs before block 0


class Ends(ForwardEnds):
    """The stores of embedding, head and shell, where their gradients wait, and the moves that a step makes with them.

    Args:
        states: durable state by unit, as the machinery has it; of these none is on disk.
        gradients: what sends gradients; to it a unit is its number in `states`, and the embedding's rows follow.

    Attributes:
        table: gives a step its embedding rows.
        head_shards: where the head passes in shards; else None.
        trains_entry: whether anything is trained that comes before the blocks.
    """

    def __init__(
        self,
        decoder: Decoder,
        lanes: Lanes,
        allocator: HostAllocator,
        states: dict[str, DurableState],
        sizes: Sizes,
        dtype: torch.dtype,
        updates: Updates,
        gradients: GradientRing,
    ):
        self._decoder, self._lanes, self._allocator, self._dtype = decoder, lanes, allocator, dtype
        self._states, self._updates, self._gradients = states, updates, gradients
        self._submission = Submission(lanes, updates)
        self._head_name = EMBEDDING if decoder.tied else HEAD
        self._head_unit, self._shell_unit = (list(states).index(name) for name in (self._head_name, SHELL))
        self._learn_what_is_trained()
        self.table = self._table(sizes.step_tokens)
        head = self._head()
        self.head_shards = self._shards_of(head, sizes.head_shards) if sizes.head_shards > 1 else None
        if isinstance(self.table, DeviceTable) and decoder.tied:
            self._head_gradient = self.table.gradient
        else:
            self._head_gradient = self._gradient_of(states[self._head_name], "head gradient")
        super().__init__(head, self._window_of_shell())
        self._shell_sum = torch.empty(states[SHELL].layout.trained_numel, dtype=torch.float32, device=lanes.device)
        self._shell_gradient = self._gradient_of(states[SHELL], "shell gradient")

    def _learn_what_is_trained(self) -> None:
        decoder, frozen = self._decoder, self._decoder.frozen
        self._trains_embedding = decoder.embedding_name not in frozen
        self._trains_head = decoder.head_name not in frozen
        self.trains_entry = self._trains_embedding or not decoder.entry_names <= frozen

    def _table(self, rows: int) -> EmbeddingTable | DeviceTable:
        state, padding = self._states[EMBEDDING], self._decoder.padding_row
        if isinstance(state, DeviceState):
            return DeviceTable(self._lanes, self._allocator, state, rows, padding)
        assert isinstance(state, LayerState), "the embedding is on disk"
        return EmbeddingTable(self._lanes, self._allocator, state, rows, self._dtype, padding)

    def _head(self) -> HeadWeight | ResidentHead:
        unit, shape = self._head_name, self._decoder.head_shape
        state = self._states[unit]
        if isinstance(state, DeviceState):
            return ResidentHead(self._lanes, shape, state)
        fresh, wait_fresh = partial(self._updates.fresh, unit), partial(self._updates.wait_fresh, unit)
        numel, copy = state.layout.numel, state.copy_weights
        return HeadWeight(self._lanes, shape, numel, self._dtype, fresh, wait_fresh, copy)

    def _shards_of(self, head: HeadWeight | ResidentHead, shards: int) -> HeadShards | ResidentHeadShards:
        unit, shape = self._head_name, self._decoder.head_shape
        if isinstance(head, ResidentHead):
            return ResidentHeadShards(head, shape[0], shards)
        state, wait_fresh = self._states[unit], partial(self._updates.wait_fresh, unit)
        assert isinstance(state, LayerState), "the head is on disk"
        return HeadShards(self._lanes, shape, shards, self._dtype, wait_fresh, state.copy_part)

    def _window_of_shell(self) -> LayerWindow:
        state = self._states[SHELL]

        def copy_shell(_: int, out: Tensor) -> None:
            state.copy_weights(out)

        return LayerWindow(
            self._lanes,
            [state.layout],
            1,
            self._dtype,
            fresh=lambda _: self._updates.fresh(SHELL),
            wait_fresh=lambda _: self._updates.wait_fresh(SHELL),
            copy_of=lambda _: copy_shell,
            resident={0: state} if isinstance(state, DeviceState) else {},
        )

    def _gradient_of(self, state: DurableState, name: str) -> Tensor:
        """Where the gradient of a unit that is no block waits for its update, beside its state."""
        numel = state.layout.trained_numel
        if isinstance(state, DeviceState):
            return torch.zeros(numel, dtype=self._dtype, device=self._lanes.device)
        return self._allocator.empty(name, (numel,), self._dtype, pinned=True)

    # ---- the moves of a step, in its order

    def fetch_head(self) -> None:
        """Start bringing the head to the device, unless it passes in shards."""
        if self.head_shards is None:
            self.head.fetch()

    def open_shell_gradient(self) -> Accumulator:
        return Accumulator(self._states[SHELL].layout, self._shell_sum)

    def new_head_gradient(self) -> Tensor | None:
        """A zeroed fp32 gradient [vocabulary, width], if the head is trained."""
        return self.head.new_gradient() if self._trains_head else None

    def submit_head(self, result: StepResult, gradient: Tensor | None, row_ids: Tensor) -> Tensor | None:
        """Flush the head's gradient and queue what can be updated of head and embedding; opens the rows' gradient."""
        tied, d_rows = self._decoder.tied, None
        if self._trains_embedding:
            d_rows = self.table.open_gradient(row_ids, gradient if tied else None)
        if gradient is not None:
            waiting = self._head_gradient[: gradient.numel()]
            self._submit_head(result, self._gradients.flush_into(self._head_unit, gradient.view(-1), waiting))
        self._submit_rest(result)
        return d_rows

    def open_head_shards(self, row_ids: Tensor) -> Tensor | None:
        """As `submit_head` opens the rows' gradient; the head's follows shard by shard."""
        if self._trains_head:
            self._gradients.begin_pieces(self._head_unit)
        return self.table.open_gradient(row_ids, None) if self._trains_embedding else None

    def new_shard_gradient(self, rows: int) -> Tensor | None:
        """A zeroed fp32 gradient [rows, width], if the head is trained."""
        return zeroed(self._lanes, (rows, self._decoder.head_shape[1])) if self._trains_head else None

    def submit_head_shard(self, first: int, gradient: Tensor | None, row_ids: Tensor, d_rows: Tensor | None) -> None:
        """Flush a shard's gradient [rows, width], the vocabulary's entries from `first` on; tied, what is of the step's
        rows is moved to `d_rows`."""
        if gradient is None:
            return
        rows, width = gradient.shape
        if self._decoder.tied and d_rows is not None:
            edges = torch.tensor([first, first + rows])
            start, stop = torch.searchsorted(self.table.row_ids, edges).tolist()
            self._lanes.compute.run(take_shard_rows, gradient, first, row_ids[start:stop], d_rows[start:stop])
        destination = self._head_gradient[first * width : (first + rows) * width]
        self._gradients.send_pieces(self._head_unit, gradient.view(-1), destination)

    def close_head_shards(self, result: StepResult) -> None:
        """Queue what can be updated of head and embedding."""
        if self._trains_head:
            whole = self._head_gradient[: math.prod(self._decoder.head_shape)]
            self._submit_head(result, self._gradients.landing(self._head_unit, whole, lambda: None, ()))
        self._submit_rest(result)

    def submit_shell_and_rows(self, result: StepResult, shell: Accumulator, rows: Tensor | None) -> None:
        """Flush what backward ends with: the parameters outside blocks and the embedding rows."""
        self._shell_window.release(0)
        self._shell_window.invalidate(0)
        landed = self._gradients.flush_into(self._shell_unit, shell.flat, self._shell_gradient, shell.reached)
        self._submission.submit(result.pending, self._states[SHELL], NEXT_USE_FIRST, landed)
        if rows is not None:
            landed_rows = self.table.flush_rows(self._gradients, len(self._states), rows)
            self._submit_rows(result, landed_rows)

    # ---- their updates

    def _submit_head(self, result: StepResult, landed: HostGradient) -> None:
        tied, table, waiting = self._decoder.tied, self.table, self._head_gradient
        if not tied:
            state = self._states[HEAD]
            whole = replace(landed, flat=waiting, reached=state.layout.fields)
            self._submission.submit(result.pending, state, self._decoder.depth, whole)
        elif isinstance(table, DeviceTable):
            self._tied_head_landed = landed  # its update follows with the rows'
        else:
            update = partial(table.update_rest, waiting)
            self._updates.submit(result.pending, EMBEDDING, NEXT_USE_FIRST, [landed], update)

    def _submit_rest(self, result: StepResult) -> None:
        """Of an embedding of its own the rows that the step did not read, whose gradient is zero."""
        if self._trains_embedding and not self._decoder.tied and isinstance(self.table, EmbeddingTable):
            rest = self.table.update_rest
            self._updates.submit(result.pending, EMBEDDING, NEXT_USE_FIRST, [], lambda hyper: rest(None, hyper))

    def _submit_rows(self, result: StepResult, landed: HostGradient) -> None:
        table, tied = self.table, self._decoder.tied
        if isinstance(table, DeviceTable):
            both = [self._tied_head_landed, landed] if tied else [landed]
            self._submission.submit_on_device(
                result.pending, table.state, both, partial(table.apply, tied, table.device_row_ids)
            )
        else:
            self._updates.submit(result.pending, EMBEDDING, NEXT_USE_FIRST, [landed], table.update_rows)
