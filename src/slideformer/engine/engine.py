"""The engine: builds the parts, owns them, and closes them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.engine import diagnose
from slideformer.engine.custom_loss import TokenLoss, head_passes
from slideformer.engine.durable import boundary_file_in, durable_states
from slideformer.engine.evaluate import Evaluation, evaluate
from slideformer.engine.generate import OnToken, batching_for, generate
from slideformer.engine.layouts import EMBEDDING, layouts
from slideformer.engine.machinery import Machinery
from slideformer.engine.sampling import Decoding
from slideformer.engine.snapshot import Snapshot
from slideformer.engine.step import train_step
from slideformer.engine.step_result import StepResult
from slideformer.engine.updates import StepUpdates, Updates
from slideformer.errors import EngineFailed
from slideformer.kernels.attention import preferred_attention
from slideformer.lanes.lanes import Lanes, lanes_for
from slideformer.memory.device_state import units_on_device
from slideformer.memory.disk_state import units_on_disk
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.snapshot import SnapshotMemory
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.threads import optimizer_threads
from slideformer.plan.sizes import Sizes
from slideformer.storage.checkpoint import UnitState


class Engine:
    """Trains one model through a sliding window.

    Args:
        decoder: the model, taken apart.
        sizes: what the plan decided.
        dtype: compute in bfloat16 or float32.
        lanes: by default those of the decoder's device.
        offload_dir: where the blocks go that `sizes` puts on disk.
        threads: of the CPU optimizer; by default all that this process may use, and beside an accelerator two fewer,
            for the threads that keep it busy.
        seed: of the stochastic rounding of moments, where `sizes.optimizer_state` is bf16.

    The weights are zero until `load`; `close` (or leaving the `with` block) frees pinned memory and the worker.
    """

    def __init__(
        self,
        decoder: Decoder,
        sizes: Sizes,
        dtype: torch.dtype,
        lanes: Lanes | None = None,
        threads: int | None = None,
        offload_dir: Path | None = None,
        seed: int = 0,
    ):
        self.decoder, self.sizes, self.dtype = decoder, sizes, dtype
        self.lanes = lanes or lanes_for(decoder.device)
        on_accelerator = self.lanes.device.type != "cpu"
        self.allocator = HostAllocator(pin=on_accelerator)
        self._threads = threads = threads or optimizer_threads(on_accelerator)
        pin_lo = on_accelerator and dtype == torch.float32  # in bf16 the GPU never sees the remainders
        with self.allocator.closed_if_it_fails(), ExitStack() as opened:
            boundary_file = boundary_file_in(offload_dir, decoder, sizes, dtype)
            if boundary_file is not None:
                opened.callback(boundary_file.close)
            units = layouts(decoder)
            on_device = units_on_device(units, decoder.block_names, sizes.resident, sizes.resident_ends)
            on_disk = units_on_disk(units, decoder.block_names[sizes.resident :], sizes.disk_blocks)
            self.states, self._records = durable_states(
                units,
                on_disk,
                on_device,
                self.lanes,
                offload_dir,
                dtype,
                self.allocator,
                pin_lo,
                threads,
                sizes.moment_dtype,
                seed,
                sizes.disk_buffers,
                sizes.disk_weight_blocks,
            )
            opened.callback(self._records.close)
            self._machinery = Machinery(
                decoder, self.lanes, self.allocator, self.states, self._records, sizes, dtype, boundary_file
            )  # fmt: skip
            self._state_bytes = {
                unit: LayerState.bytes_needed(layout, sizes.moment_dtype) for unit, layout in units.items()
            }
            self._snapshot_memory = SnapshotMemory(self._state_bytes.values(), sizes.snapshot_units, self.allocator)
            self._files = opened.pop_all()
        self._snapshot: Snapshot | None = None
        self._failure: BaseException | None = None
        self._pending: StepResult | None = None

    @property
    def updates(self) -> Updates:
        """The optimizer's queue, for instruments."""
        return self._machinery.updates

    def train_step(
        self,
        batch: Batch,
        hyper: AdamWStep,
        max_norm: float | None = None,
        *,
        loss: TokenLoss | None = None,
        extra: Mapping[str, Tensor] | None = None,
        skip_non_finite: bool = False,
    ) -> StepResult:
        """One optimizer step; returns while its last updates still run.

        Args:
            batch: at most the sequences, of at most the length, that `sizes` names.
            hyper: AdamW's settings, with the step counted from 1.
            max_norm: clip the gradient's norm to this, exactly; None leaves it alone.
            loss: called with each `TokenChunk` of trained tokens in turn, returns what it adds to the step's loss: a
                scalar tensor that depends on the chunk's logits or hidden states. None is the mean cross-entropy. Its
                own memory is not part of the plan.
            extra: per-token tensors for `loss`, name -> [B, T, ...]; entry [b, t] belongs to the prediction that is
                made at token t, as `logits[b, t]` does in Hugging Face models.
            skip_non_finite: a step whose gradient is NaN or infinite changes nothing: weights, moments and the count
                of steps for bias correction are then as if it had not been; `StepResult.non_finite` names the layers.
                Needs `max_norm`, since without clipping some layers are updated before the others' gradient is known.

        Raises:
            NonFinite: a gradient is NaN or infinite; names the step and the layer.
            WorkerFailed: the update of a layer failed; names it.
            EngineFailed: an earlier step failed.
            ValueError: the batch, or clipping, needs more than `sizes` gives; `loss` or `extra` is not as it should be;
                `skip_non_finite` without `max_norm`.
        """
        self._refuse_after_failure()
        self._check_size(batch)
        if max_norm is not None:
            self._check_that_gradients_can_wait()
        if skip_non_finite and max_norm is None:
            raise ValueError("skip_non_finite needs max_norm: without clipping layers are updated before all is known")
        with self._final_if_it_fails(), preferred_attention(self.lanes.device):
            micro_batches = batch.split(self.sizes.micro_batch_size)
            passes = head_passes(loss, extra or {}, micro_batches, self.lanes.device)
            updates = StepUpdates(hyper, max_norm, skip_non_finite)
            self._pending = train_step(self._machinery, micro_batches, updates, passes)
        return self._pending

    def drain(self) -> None:
        """Wait until every update has run."""
        self._refuse_after_failure()
        with self._final_if_it_fails():
            if self._pending is not None:
                self._machinery.updates.wait_done(self._pending.pending)
            self._records.drain()

    def evaluate(self, batches: Sequence[Batch]) -> Evaluation:
        """The loss over the trained tokens of all batches, forward only; leaves no trace on training.

        Args:
            batches: at least one; each of at most the sequences, of at most the length, that `sizes` names.
        """
        for batch in batches:
            self._check_size(batch)
        self.drain()
        with self._final_if_it_fails(), preferred_attention(self.lanes.device):
            split = [batch.split(self.sizes.micro_batch_size) for batch in batches]
            return evaluate(self._machinery, split, self.sizes.head_chunk)

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, on_token: OnToken | None = None
    ) -> list[list[int]]:
        """Answers to prompts (token ids), through the window; leaves no trace on training.

        Args:
            prompts: none empty, each of at most `sizes.max_length` tokens.
            on_token: told of (number of the prompt, token) as soon as it is chosen.
        """
        sizes = self.sizes
        batching = batching_for(
            self.decoder, prompts, decoding, sizes.micro_batch_size, sizes.micro_batches, sizes.max_length
        )
        self.drain()
        with self._final_if_it_fails():  # attention in PyTorch's own order: padding rows are masked as a whole
            return generate(self._machinery, prompts, decoding, batching, on_token)

    def find_non_finite(self, batch: Batch) -> str:
        """Where a batch's forward, or the weights, first stop being finite, in words; for a step that failed."""
        return diagnose.first_non_finite(
            self.decoder, self.states, self.dtype, batch.split(self.sizes.micro_batch_size)
        )

    def load(self, groups: Iterable[tuple[str, Mapping[str, Tensor]]]) -> None:
        """Set masters from (unit, parameter name -> values) pairs, as `parameter_groups` names them."""
        with self._final_if_it_fails():
            for unit, tensors in groups:
                self._load_unit(unit, tensors)
                del tensors  # before the next unit's exist: the plan has room for one

    def _load_unit(self, unit: str, tensors: Mapping[str, Tensor]) -> None:
        prefix = self._prefix(unit)
        with self.states[unit].opened(change=True) as state:
            for name, value in tensors.items():
                state.load(name.removeprefix(prefix), value)

    def parameter_groups(self) -> dict[str, list[str]]:
        """Unit -> full names of its parameters, in the order in which they are used."""
        return {
            unit: [self._prefix(unit) + name for name in state.layout.fields] for unit, state in self.states.items()
        }

    def weights(self, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(unit, full name -> weights), bf16 as views of what trains, fp32 as copies; after `drain`."""
        self.drain()
        for unit, state in self.states.items():
            prefix = self._prefix(unit)
            with state.opened_weights(dtype) as readable:
                yield unit, {prefix + name: readable.read(name, dtype) for name in state.layout.fields}

    def unit_states(self) -> dict[str, UnitState]:
        """Everything durable, where it lies, after the last update; write to it only before the first step."""
        self.drain()
        return self._unit_states()

    def _unit_states(self) -> dict[str, UnitState]:
        """In the order in which a step changes them: a table at its head's gradient, then the last block first."""
        order = sorted(reversed(self.states), key=lambda unit: unit != EMBEDDING)
        states = {unit: self.states[unit] for unit in order}
        return {unit: UnitState(state.layout, state.opened, state.counts.missed) for unit, state in states.items()}

    def begin_snapshot(self) -> Snapshot:
        """What `unit_states` would be now, kept while later steps go on; waits for nothing. One at a time: a snapshot
        holds until `end_snapshot`.

        Raises:
            EngineFailed: an earlier step failed.
        """
        self._refuse_after_failure()
        assert self._snapshot is None, "one snapshot at a time"
        updates = self._machinery.updates
        units, threads = self._unit_states(), self._threads
        self._snapshot = Snapshot(units, self._state_bytes, self._snapshot_memory, threads, updates)
        return self._snapshot

    def end_snapshot(self) -> None:
        """Give up what the snapshot still holds, if there is one; from any thread."""
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None

    def close(self) -> None:
        """Stop the worker and free pinned memory."""
        self.end_snapshot()
        self._machinery.updates.worker.close()
        try:
            self._files.close()
            if self.lanes.device.type != "cpu":
                torch.accelerator.synchronize(self.lanes.device)
        finally:  # a device that failed tells so again
            self.allocator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prefix(self, unit: str) -> str:
        return f"{unit}." if unit in self.decoder.block_names else ""

    def _check_size(self, batch: Batch) -> None:
        sizes, sequences, longest = self.sizes, len(batch.lengths), max(batch.lengths)
        most = sizes.micro_batch_size * sizes.micro_batches
        if sequences > most or longest > sizes.max_length:
            raise ValueError(
                f"a batch of {sequences} sequences of up to {longest} tokens; "
                f"the engine is built for {most} of up to {sizes.max_length}"
            )

    def _check_that_gradients_can_wait(self) -> None:
        sizes = self.sizes
        sliding = self.decoder.depth - sizes.resident
        if sizes.gradient_slots < sliding:
            raise ValueError(
                f"clipping keeps the gradients of {sliding} blocks at once; the engine has {sizes.gradient_slots} slots"
            )
        if (sizes.resident or sizes.resident_ends) and not sizes.resident_gradients:
            raise ValueError("clipping keeps all gradients at once; the engine has no memory for those on the device")

    @contextmanager
    def _final_if_it_fails(self) -> Iterator[None]:
        """What fails within leaves the parts of the engine in the middle of something: nothing may follow."""
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise

    def _refuse_after_failure(self) -> None:
        if self._failure is not None:
            raise EngineFailed(
                f"an earlier step failed ({type(self._failure).__name__}), so layers may be of different steps",
                "start again from the last saved model",
            ) from self._failure
