"""The middle of a step: head and loss, with the head as a whole or in shards."""

from torch import Tensor

from slideformer.engine import head_shards
from slideformer.engine.compute import MicroBatch, Weights, head_loss_and_gradient
from slideformer.engine.custom_loss import HeadPass
from slideformer.engine.machinery import Machinery
from slideformer.engine.step_result import StepResult
from slideformer.memory.gradients import Accumulator


def head_and_loss(
    e: Machinery,
    result: StepResult,
    passes: list[HeadPass],
    shell: Weights,
    d_shell: Accumulator,
    xs: list[Tensor],
    batches: list[MicroBatch],
    row_ids: Tensor,
) -> tuple[list[Tensor], Tensor | None]:
    """Everything behind the last block, forward and backward; `xs`, what left the blocks, is used up.

    A loss of one's own wants whole logits, and has the whole head.

    Returns:
        dx of each micro-batch, and the embedding rows' gradient, opened (None if frozen).
    """
    in_shards = e.head_shards is not None and all(one is head_loss_and_gradient for one in passes)
    if in_shards:
        return _in_shards(e, result, shell, d_shell, xs, batches, row_ids)
    return _as_a_whole(e, result, passes, shell, d_shell, xs, batches, row_ids)


def _as_a_whole(
    e: Machinery,
    result: StepResult,
    passes: list[HeadPass],
    shell: Weights,
    d_shell: Accumulator,
    xs: list[Tensor],
    batches: list[MicroBatch],
    row_ids: Tensor,
) -> tuple[list[Tensor], Tensor | None]:
    head, d_head = e.head.weight(), e.new_head_gradient()
    dxs = []
    while xs:
        batch, head_pass = batches[len(dxs)], passes[len(dxs)]
        shares = (result.trained_tokens, e.head_chunk, result.device_loss, d_shell)
        dxs.append(e.lanes.compute.run(head_pass, e.decoder, head, d_head, shell, xs.pop(0), batch, *shares))
    e.head.release()
    return dxs, e.submit_head(result, d_head, row_ids)


def _in_shards(
    e: Machinery,
    result: StepResult,
    shell: Weights,
    d_shell: Accumulator,
    xs: list[Tensor],
    batches: list[MicroBatch],
    row_ids: Tensor,
) -> tuple[list[Tensor], Tensor | None]:
    """Vertical: all micro-batches pass a shard before the next one takes its place."""
    run, decoder, chunk, trained = e.lanes.compute.run, e.decoder, e.head_chunk, result.trained_tokens
    assert e.head_shards is not None
    tokens = [run(head_shards.enter_head, decoder, shell, x, b, chunk) for x, b in zip(xs, batches, strict=True)]
    for first, weight in e.head_shards.each():
        for of, batch in zip(tokens, batches, strict=True):
            run(head_shards.add_statistics, decoder, weight, first, shell, of, batch, chunk)
    del weight  # a buffer of the first pass, which is over
    for of in tokens:
        run(head_shards.add_loss, of, trained, result.device_loss)

    d_rows = e.open_head_shards(row_ids)
    for first, weight in e.head_shards.each():
        d_weight = e.new_shard_gradient(len(weight))
        for of, batch in zip(tokens, batches, strict=True):
            shares = (batch, trained, chunk, d_shell)
            run(head_shards.add_shard_gradients, decoder, weight, d_weight, first, shell, of, *shares)
        e.submit_head_shard(first, d_weight, row_ids, d_rows)
        del d_weight
    del weight
    dxs = []
    while xs:
        of, batch = tokens.pop(0), batches[len(dxs)]
        dxs.append(run(head_shards.leave_head, decoder, shell, xs.pop(0), batch, of, chunk, d_shell))
    e.close_head_shards(result)
    return dxs, d_rows
