"""The training step: the order of work, and the only place where it is written."""

from slideformer.data.batches import Batch
from slideformer.engine import compute
from slideformer.engine.custom_loss import HeadPass
from slideformer.engine.head_step import HeadStep
from slideformer.engine.machinery import Machinery
from slideformer.engine.step_result import StepResult
from slideformer.engine.tape import Tape
from slideformer.engine.updates import StepUpdates


def train_step(
    e: Machinery, micro_batches: list[Batch], pending: StepUpdates, head_passes: list[HeadPass]
) -> StepResult:
    """One optimizer step over all micro-batches; returns while the last updates still run.

    Vertical: all micro-batches pass a layer before the window moves, so weights cross the link twice a step.
    """
    run, decoder, n = e.lanes.compute.run, e.decoder, e.decoder.depth
    result = e.begin(micro_batches, pending)
    batches, rows, row_ids = e.feed(micro_batches, seed=pending.hyper.step)
    shell = e.ends.fetch_shell()

    inputs = [run(compute.enter, decoder, batch, rows, shell) for batch in batches]
    xs = [run(compute.hidden_of, entered) for entered in inputs]
    tapes: dict[tuple[int, int], Tape] = {}
    e.fetch(range(e.window.depth))
    for i in range(n):
        weights = e.window.layer(i)
        for m, batch in enumerate(batches):
            call = (decoder, i, weights, xs[m], inputs[m], batch)
            if i < e.lowest:
                xs[m] = run(compute.block_forward, *call)
                continue
            e.saved.save(i, m, xs[m], e.hidden_shape(batch))
            tapes[i, m] = run(compute.block_recorded, *call, e.keeps(i, m), e.needs_dx(i))
            xs[m] = run(compute.output_of, tapes[i, m])
            e.outputs.save(i, m, tapes[i, m])
        e.window.release(i)
        e.fetch([i + e.window.depth])  # behind the last block comes the head

    order = [(i, m) for i in reversed(range(e.lowest, n)) for m in range(len(batches))]
    e.saved.turn(order)
    e.outputs.turn(order)
    e.fetch(reversed(range(max(e.lowest, n - e.window.depth), n)))  # still in the window
    d_shell = e.ends.open_shell_gradient()
    dxs, d_rows = HeadStep(e, result, shell, d_shell, batches, row_ids).run(head_passes, xs)

    for i in reversed(range(e.lowest, n)):
        weights, d_weights = e.window.layer(i), e.gradients.open(e.layouts[i])
        for m in range(len(batches)):
            x = e.saved.load(i, m)
            tape = tapes.pop((i, m))
            e.outputs.load(i, m, tape)
            dxs[m] = run(compute.block_backward, decoder, i, tape, weights, x, inputs[m], dxs[m], d_weights)
            e.saved.release(i, m)
            e.outputs.release(i, m)
        e.window.release(i)
        e.submit_block(result, i, d_weights)
        e.fetch(range(max(e.lowest, i - e.window.depth), i - e.window.depth + 1))

    padding = e.ends.table.padding_index
    for m, batch in enumerate(batches if e.ends.trains_entry else []):
        run(compute.enter_backward, decoder, batch, rows, shell, inputs[m], dxs[m], d_rows, padding, d_shell)
    e.ends.submit_shell_and_rows(result, d_shell, d_rows)
    return e.close(result)
