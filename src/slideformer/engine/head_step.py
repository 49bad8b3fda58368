"""The middle of a step: head and loss, with the head as a whole or in shards."""

from dataclasses import dataclass

from torch import Tensor

from slideformer.engine import head_shards
from slideformer.engine.compute import MicroBatch, Weights, head_loss_and_gradient
from slideformer.engine.custom_loss import HeadPass
from slideformer.engine.head_shards import HeadTokens
from slideformer.engine.machinery import Machinery
from slideformer.engine.step_result import StepResult
from slideformer.memory.gradients import Accumulator
from slideformer.memory.head_shards import HeadShards, ResidentHeadShards

Shards = HeadShards | ResidentHeadShards


@dataclass(frozen=True)
class HeadStep:
    """Everything behind the last block, forward and backward, over all micro-batches of a step.

    Attributes:
        shell, d_shell: weights outside blocks, and what sums their gradient.
        row_ids: which embedding rows the step reads.
    """

    e: Machinery
    result: StepResult
    shell: Weights
    d_shell: Accumulator
    batches: list[MicroBatch]
    row_ids: Tensor

    def run(self, passes: list[HeadPass], xs: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Use up `xs`, what left the blocks. A loss of one's own wants whole logits, and has the whole head.

        Returns:
            dx of each micro-batch, and the embedding rows' gradient, opened (None if frozen).
        """
        shards = self.e.ends.head_shards
        if shards is not None and all(one is head_loss_and_gradient for one in passes):
            return self._in_shards(shards, xs)
        return self._as_a_whole(passes, xs)

    def _as_a_whole(self, passes: list[HeadPass], xs: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        e, ends, result = self.e, self.e.ends, self.result
        head, d_head = ends.head.weight(), ends.new_head_gradient()
        dxs = []
        while xs:
            batch, head_pass = self.batches[len(dxs)], passes[len(dxs)]
            shares = (result.trained_tokens, e.head_chunk, result.device_loss, self.d_shell)
            dxs.append(e.lanes.compute.run(head_pass, e.decoder, head, d_head, self.shell, xs.pop(0), batch, *shares))
        ends.head.release()
        return dxs, ends.submit_head(result, d_head, self.row_ids)

    def _in_shards(self, shards: Shards, xs: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Vertical: all micro-batches pass a shard before the next one takes its place."""
        e, run = self.e, self.e.lanes.compute.run
        tokens = [
            run(head_shards.enter_head, e.decoder, self.shell, x, batch, e.head_chunk)
            for x, batch in zip(xs, self.batches, strict=True)
        ]
        self._add_losses(shards, tokens)
        d_rows = e.ends.open_head_shards(self.row_ids)
        self._add_gradients(shards, tokens, d_rows)
        dxs = []
        while xs:
            of, batch = tokens.pop(0), self.batches[len(dxs)]
            call = (e.decoder, self.shell, xs.pop(0), batch, of, e.head_chunk, self.d_shell)
            dxs.append(run(head_shards.leave_head, *call))
        e.ends.close_head_shards(self.result)
        return dxs, d_rows

    def _add_losses(self, shards: Shards, tokens: list[HeadTokens]) -> None:
        """First pass of the shards."""
        e, run = self.e, self.e.lanes.compute.run
        for first, weight in shards.each():
            for of, batch in zip(tokens, self.batches, strict=True):
                run(head_shards.add_statistics, e.decoder, weight, first, self.shell, of, batch, e.head_chunk)
        for of in tokens:
            run(head_shards.add_loss, of, self.result.trained_tokens, self.result.device_loss)

    def _add_gradients(self, shards: Shards, tokens: list[HeadTokens], d_rows: Tensor | None) -> None:
        """Second pass."""
        e, run = self.e, self.e.lanes.compute.run
        for first, weight in shards.each():
            d_weight = e.ends.new_shard_gradient(len(weight))
            for of, batch in zip(tokens, self.batches, strict=True):
                shares = (batch, self.result.trained_tokens, e.head_chunk, self.d_shell)
                run(head_shards.add_shard_gradients, e.decoder, weight, d_weight, first, self.shell, of, *shares)
            e.ends.submit_head_shard(first, d_weight, self.row_ids, d_rows)
            del d_weight  # before the next shard's exists
