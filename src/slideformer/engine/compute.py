"""What the compute lane runs: forward and backward of the three parts, each a function of tensors handed in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slideformer.engine.tape import Level, Tape, as_leaves, gradients_of
from slideformer.kernels.cross_entropy import cross_entropy, negative_log_likelihood
from slideformer.memory.gradients import Accumulator
from slideformer.models.architecture import Decoder
from slideformer.models.packed_attention import Documents
from slideformer.models.stand_ins import DecoderInputs

Weights = Mapping[str, Tensor]
OfChunk = Callable[[slice, Tensor, Weights], tuple[Tensor, Tensor | None]]  # as `tail_backward` says


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch on the device.

    Attributes:
        input_ids: int64 [b, t].
        row_of: int64 [b, t], each token's row among the gathered embedding rows.
        positions: int64 [p], which of the b*t positions are trained.
        targets: int64 [p], their next tokens.
        seed: draws the dropout masks; layer i adds i + 1.
        documents: of packed rows; None: each row is one.
    """

    input_ids: Tensor
    row_of: Tensor
    positions: Tensor
    targets: Tensor
    seed: int
    documents: Documents | None = None


def enter(decoder: Decoder, batch: MicroBatch, rows: Tensor, shell: Weights) -> DecoderInputs:
    """What enters the blocks, without a graph."""
    with torch.no_grad():
        return decoder.enter(batch.input_ids, rows, batch.row_of, shell, batch.seed, batch.documents)


def hidden_of(inputs: DecoderInputs) -> Tensor:
    return inputs.hidden


def block_forward(
    decoder: Decoder, i: int, weights: Weights, x: Tensor, inputs: DecoderInputs, batch: MicroBatch
) -> Tensor:
    """Block i without a graph: [b, t, hidden] -> [b, t, hidden]."""
    with torch.no_grad():
        return decoder.block(i, weights, x, inputs, batch.seed + i + 1)


def block_recorded(
    decoder: Decoder,
    i: int,
    weights: Weights,
    x: Tensor,
    inputs: DecoderInputs,
    batch: MicroBatch,
    level: Level,
    needs_dx: bool = True,
) -> Tape:
    """Block i, remembered for its backward: [b, t, hidden] -> [b, t, hidden] by `output_of`."""

    def forward(leaves: dict[str, Tensor], x: Tensor, *sides: Tensor) -> Tensor:
        return decoder.block(i, leaves, x, inputs, batch.seed + i + 1, sides)

    given = [x, *decoder.sides(i, inputs)]
    return Tape(forward, dict(weights), given, level, decoder.frozen_in_block(i), needs_dx)


def output_of(tape: Tape) -> Tensor:
    return tape.take_output()


def block_backward(
    decoder: Decoder,
    i: int,
    tape: Tape,
    weights: Weights,
    x: Tensor,
    inputs: DecoderInputs,
    dy: Tensor,
    into: Accumulator,
) -> Tensor | None:
    """Backward of `block_recorded`; returns dx if it is needed, adds the trained weights' gradients to `into` and those
    of what else the block was called with to `inputs`."""
    sides = decoder.sides(i, inputs)
    dx, *d_sides = tape.backward(dict(weights), [x, *sides], dy, into) or [None]
    inputs.add_gradients(sides, d_sides)
    return dx


def enter_backward(
    decoder: Decoder,
    batch: MicroBatch,
    rows: Tensor,
    shell: Weights,
    inputs: DecoderInputs,
    dx: Tensor,
    row_gradient: Tensor | None,
    padding_index: int | None,
    into: Accumulator,
) -> None:
    """Backward of `enter`, whose result `inputs` was: adds to the embedding rows' gradient (fp32 [u, width]; None if
    frozen) and the shell's."""
    rows, leaves = rows.detach().requires_grad_(row_gradient is not None), as_leaves(dict(shell), decoder.frozen)
    with torch.enable_grad():
        again = decoder.enter(batch.input_ids, rows, batch.row_of, leaves, batch.seed, batch.documents)
    outputs, d_outputs = [again.hidden], [dx]
    for one, first in zip(decoder.all_sides(again), decoder.all_sides(inputs), strict=True):
        if one.requires_grad and (d_side := inputs.gradient_of(first)) is not None:
            outputs.append(one)
            d_outputs.append(d_side.to(one.dtype))
    wanted = [leaf for leaf in (rows, *leaves.values()) if leaf.requires_grad]
    gradients = gradients_of(outputs, wanted, d_outputs)
    if row_gradient is not None:
        d_rows = gradients.pop(0)
        assert d_rows is not None  # they are what enters
        if padding_index is not None:
            d_rows[padding_index] = 0
        row_gradient.add_(d_rows)
    into.add(gradients)


def tail_backward(
    decoder: Decoder, shell: Weights, x: Tensor, batch: MicroBatch, chunk: int, into: Accumulator, of_chunk: OfChunk
) -> Tensor:
    """Gradients of something behind the last block, computed for `chunk` trained tokens at a time; returns dx.

    Args:
        into: the shell's gradients are added to it.
        of_chunk: (which of the trained tokens, their hidden states, the shell) -> a tensor that depends on them, and
            its gradient; None for a scalar, a share of the loss itself.
    """
    leaves = as_leaves(dict(shell), decoder.frozen)
    trained = [leaf for leaf in leaves.values() if leaf.requires_grad]
    flat = decoder.boundary.by_token(x)
    dx = torch.zeros_like(flat)
    start = 0
    for positions in batch.positions.split(chunk):
        tokens = slice(start, start := start + len(positions))
        hidden = decoder.boundary.from_tokens(flat.index_select(0, positions), len(positions)).requires_grad_()
        output, d_output = of_chunk(tokens, hidden, leaves)
        d_hidden, *gradients = gradients_of([output], [hidden, *trained], [d_output])
        del output, d_output  # before the next chunk's exist
        if d_hidden is not None:
            dx.index_copy_(0, positions, decoder.boundary.by_token(d_hidden))
        into.add(gradients)
    return decoder.boundary.from_tokens(dx, batch.input_ids.shape[0])


def head_loss_and_gradient(
    decoder: Decoder,
    weight: Tensor,
    weight_gradient: Tensor | None,
    shell: Weights,
    x: Tensor,
    batch: MicroBatch,
    trained_tokens: int,
    chunk: int,
    loss: Tensor,
    into: Accumulator,
) -> Tensor:
    """Loss and gradients behind the last block, `chunk` tokens at a time so that the logits never exist as a whole.

    Adds this micro-batch's share of the mean over the step's `trained_tokens` to `loss` (fp32 scalar), the head's
    gradient to `weight_gradient` (fp32 [vocabulary, width]; None if frozen) and the shell's to `into`; returns dx.
    """

    def of_chunk(tokens: slice, hidden: Tensor, leaves: Weights) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            logits = decoder.tail.logits(hidden, weight, weight_gradient, leaves).flatten(0, 1)
        share, d_logits = cross_entropy(logits, batch.targets[tokens], 1.0 / trained_tokens)
        loss.add_(share)
        return logits, d_logits

    return tail_backward(decoder, shell, x, batch, chunk, into, of_chunk)


def add_head_loss(
    decoder: Decoder, weight: Tensor, shell: Weights, x: Tensor, batch: MicroBatch, chunk: int, total: Tensor
) -> None:
    """Add the negative log-likelihood of the micro-batch's trained tokens to `total` (fp64 scalar)."""
    flat = decoder.boundary.by_token(x)
    with torch.no_grad():
        for positions, targets in zip(batch.positions.split(chunk), batch.targets.split(chunk), strict=True):
            hidden = decoder.boundary.from_tokens(flat.index_select(0, positions), len(positions))
            logits = decoder.tail.logits(hidden, weight, None, shell).flatten(0, 1)
            total.add_(negative_log_likelihood(logits, targets))


def next_logits(decoder: Decoder, weight: Tensor, shell: Weights, last: Tensor, out: Tensor) -> None:
    """Logits of hidden states [b, 1, hidden] behind the last block, to `out` (fp32 [b, vocabulary])."""
    with torch.no_grad():
        out.copy_(decoder.tail.logits(last.contiguous(), weight, None, shell).flatten(0, 1))
