"""A loss of one's own behind the last block, a few tokens at a time, so that the logits never exist as a whole."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.engine.compute import MicroBatch, Weights, head_loss_and_gradient, tail_backward
from slideformer.memory.gradients import Accumulator
from slideformer.models.architecture import Decoder

HeadPass = Callable[..., Tensor]  # as `head_loss_and_gradient`


class TokenChunk:
    """Some of a step's trained tokens, while their logits can exist. n is their number.

    Attributes:
        targets: int64 [n], the tokens that follow.
        extra: name -> [n, ...], the step's per-token tensors at these tokens.
        trained_tokens: of the whole step: what a mean divides by.
    """

    def __init__(
        self,
        hidden: Tensor,
        logits_of: Callable[[Tensor], Tensor],
        targets: Tensor,
        extra: Mapping[str, Tensor],
        trained_tokens: int,
    ):
        self._hidden, self._logits_of = hidden, logits_of
        self.targets, self.extra, self.trained_tokens = targets, extra, trained_tokens

    @cached_property
    def hidden(self) -> Tensor:
        """[n, hidden] in the compute dtype, differentiable: what leaves the last block, before the final norm."""
        return self._hidden.squeeze(1)

    @cached_property
    def logits(self) -> Tensor:
        """[n, vocabulary] in the compute dtype, differentiable; computed when first read."""
        return self._logits_of(self._hidden).flatten(0, 1)


TokenLoss = Callable[[TokenChunk], Tensor]


def head_passes(
    loss: TokenLoss | None, extra: Mapping[str, Tensor], micro_batches: list[Batch], device: torch.device
) -> list[HeadPass]:
    """What each micro-batch runs behind the last block; cross-entropy without a `loss`.

    Args:
        extra: name -> [B, T, ...] over all sequences of the step; their rows are sent to `device` now.

    Raises:
        ValueError: a tensor of `extra` does not cover every token of the step.
    """
    if loss is None:
        return [head_loss_and_gradient] * len(micro_batches)
    _check_shapes(extra, micro_batches)
    passes, first = [], 0
    for batch in micro_batches:
        rows, length = batch.input_ids.shape
        own = {name: value[first : first + rows, :length].flatten(0, 1).to(device) for name, value in extra.items()}
        passes.append(partial(custom_loss_and_gradient, loss, own))
        first += rows
    return passes


def custom_loss_and_gradient(
    loss_of: TokenLoss,
    extra: Mapping[str, Tensor],
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
    """`head_loss_and_gradient` with `loss_of` in the place of cross-entropy.

    Args:
        extra: name -> [b * t, ...] on the device.
    """

    def of_chunk(tokens: slice, hidden: Tensor, leaves: Weights) -> tuple[Tensor, None]:
        chosen = {name: value.index_select(0, batch.positions[tokens]) for name, value in extra.items()}

        def logits_of(hidden: Tensor) -> Tensor:
            return decoder.tail.logits(hidden, weight, weight_gradient, leaves)

        with torch.enable_grad():
            share = _checked(loss_of(TokenChunk(hidden, logits_of, batch.targets[tokens], chosen, trained_tokens)))
        loss.add_(share.detach())
        return share, None

    return tail_backward(decoder, shell, x, batch, chunk, into, of_chunk)


def _checked(share: Tensor) -> Tensor:
    if not isinstance(share, Tensor) or share.numel() != 1 or not share.requires_grad:
        raise ValueError(
            "a loss must return a scalar tensor that depends on the chunk's logits or hidden states; "
            f"this one returned {share!r}"
        )
    return share.reshape(())


def _check_shapes(extra: Mapping[str, Tensor], micro_batches: list[Batch]) -> None:
    rows = sum(batch.input_ids.shape[0] for batch in micro_batches)
    longest = max(batch.input_ids.shape[1] for batch in micro_batches)
    for name, value in extra.items():
        if value.dim() < 2 or value.shape[0] != rows or value.shape[1] < longest:
            raise ValueError(
                f"extra[{name!r}] is {list(value.shape)}, expected [{rows}, {longest}, ...]: one entry for each token"
            )
