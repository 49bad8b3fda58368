"""Forward only: the loss of held-out batches through the same window."""

import torch

from slideformer.data.batches import Batch
from slideformer.engine import compute
from slideformer.engine.machinery import Machinery


def loss(e: Machinery, micro_batches: list[Batch]) -> float:
    """Mean negative log-likelihood of the trained tokens, without dropout; waits for the result."""
    run, decoder, n = e.lanes.compute.run, e.decoder, e.decoder.depth
    total = torch.empty((), dtype=torch.float32, device=e.lanes.device)
    run(total.zero_)
    trained = sum(batch.trained_tokens for batch in micro_batches)
    with decoder.without_dropout():
        batches, rows, _ = e.feed(micro_batches, seed=0)
        shell = e.fetch_shell()
        inputs = [run(compute.enter, decoder, batch, rows, shell) for batch in batches]
        xs = [run(compute.hidden_of, entered) for entered in inputs]
        e.fetch(range(e.window.depth))
        for i in range(n):
            weights = e.window.layer(i)
            for m, batch in enumerate(batches):
                xs[m] = run(compute.block_forward, decoder, i, weights, xs[m], inputs[m], batch)
            e.window.release(i)
            e.fetch([i + e.window.depth])
        head = e.head.weight()
        for m, batch in enumerate(batches):
            run(compute.head_loss, decoder, head, shell, xs[m], batch, trained, e.head_chunk, total)
        e.lanes.compute.record().wait()
    e.head.release()
    e.release_shell()
    return float(total)
