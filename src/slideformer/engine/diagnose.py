"""After a step that was not finite: which layer is to blame."""

from contextlib import nullcontext

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.engine import compute
from slideformer.engine.durable import DurableState
from slideformer.engine.layouts import EMBEDDING, SHELL
from slideformer.engine.send_batches import documents_on
from slideformer.memory.disk_state import DiskState
from slideformer.models.architecture import Decoder


def first_non_finite(
    decoder: Decoder, states: dict[str, DurableState], dtype: torch.dtype, micro_batches: list[Batch]
) -> str:
    """Look through the weights, then repeat the forward with a check behind each block; returns the place in words.

    Needs nothing of a running engine, since that has failed: weights are copied one block at a time.
    """
    for unit, state in states.items():
        with state.opened_weights(torch.bfloat16) if isinstance(state, DiskState) else nullcontext(state) as weights:
            if not bool(torch.isfinite(weights.hi).all()):
                return f"the weights of {unit} are not finite"
    shell = _on_device(states[SHELL], decoder, dtype)
    for micro_batch in micro_batches:
        place = _in_forward(decoder, states, dtype, micro_batch, shell)
        if place:
            return f"{place} (records {_named(micro_batch)})"
    return "every block's output is finite; the loss or the backward pass is not"


def _in_forward(
    decoder: Decoder, states: dict[str, DurableState], dtype: torch.dtype, batch: Batch, shell: dict[str, Tensor]
) -> str | None:
    rows, row_of = torch.unique(batch.input_ids, return_inverse=True)
    with states[EMBEDDING].opened_weights(dtype) as state:
        table = state.read(decoder.embedding_name, dtype)
    ids = batch.input_ids.to(decoder.device)
    row_of, documents = row_of.to(decoder.device), documents_on(batch, decoder.device)
    micro_batch = compute.MicroBatch(ids, row_of, ids[0, :0], ids[0, :0], 0, documents)
    inputs = compute.enter(decoder, micro_batch, table[rows].to(decoder.device), shell)
    x = inputs.hidden
    if not bool(torch.isfinite(x).all()):
        return "the embedding's output is the first that is not finite"
    for i, name in enumerate(decoder.block_names):
        x = compute.block_forward(decoder, i, _on_device(states[name], decoder, dtype), x, inputs, micro_batch)
        if not bool(torch.isfinite(x).all()):
            return f"the output of {name} is the first that is not finite"
    return None


def _on_device(state: DurableState, decoder: Decoder, dtype: torch.dtype) -> dict[str, Tensor]:
    flat = torch.empty(state.layout.numel, dtype=dtype, device=decoder.device)
    state.copy_weights(flat)
    return state.layout.views(flat)


def _named(batch: Batch) -> str:
    names = ", ".join(str(index) for index in batch.indices[:8])
    return names if len(batch.indices) <= 8 else f"{names}, ..."
