"""Modules that take the places of blocks, embedding and head while the model's own forward runs."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from slideformer.errors import UnsupportedModel
from slideformer.models.packed_attention import Documents


@dataclass(frozen=True)
class BlockCall:
    """What the model's forward passes to one block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class DecoderInputs:
    """What enters the blocks: hidden states [b, t, hidden], per block the rest of its call, and packed documents."""

    hidden: Tensor
    calls: list[BlockCall]
    documents: Documents | None = None


class StopForward(Exception):
    """Raised by the last block's stand-in when everything the blocks need has been recorded."""


class BlockChain:
    """What the stand-ins of one model share: they either record how blocks are called, or pass `hidden` through.

    Attributes:
        arity: how many values the model's forward expects of a block; 0 is a bare tensor.
    """

    def __init__(self, length: int):
        self.length = length
        self.arity = 0
        self.hidden: Tensor | None = None
        self.recorded: list[tuple[Tensor, BlockCall]] = []

    def start_recording(self) -> None:
        self.hidden, self.recorded = None, []

    def start_passing(self, hidden: Tensor) -> None:
        self.hidden, self.recorded = hidden, []

    def step(self, index: int, hidden: Tensor, call: BlockCall) -> Any:
        """The forward of the stand-in for block `index`."""
        if self.hidden is not None:
            return self.as_output(self.hidden)
        if index != len(self.recorded):
            raise UnsupportedModel(
                f"the model's forward calls block {index} in place {len(self.recorded)}",
                "models that skip, repeat or reorder blocks cannot be streamed",
            )
        if self.recorded and hidden is not self.recorded[0][0]:
            raise UnsupportedModel(
                "the model computes on the hidden states between two blocks",
                "only models whose blocks follow each other directly can be streamed",
            )
        self.recorded.append((hidden, call))
        if len(self.recorded) == self.length:
            raise StopForward
        return self.as_output(hidden)

    def as_output(self, hidden: Tensor) -> Any:
        return (hidden, *[None] * (self.arity - 1)) if self.arity else hidden

    def take(self) -> DecoderInputs:
        """What was recorded."""
        recorded, self.recorded = self.recorded, []
        if len(recorded) != self.length:
            raise UnsupportedModel(
                f"the model's forward called {len(recorded)} of its {self.length} blocks",
                "models that skip, repeat or reorder blocks cannot be streamed",
            )
        return DecoderInputs(recorded[0][0], [call for _, call in recorded])


class BlockStandIn(nn.Module):
    """Stands for a block; its attributes (attention type, index) are the block's own."""

    def __init__(self, index: int, block: nn.Module, chain: BlockChain):
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a submodule: its parameters are not the shell's
        object.__setattr__(self, "_step", partial(chain.step, index))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return object.__getattribute__(self, "_step")(hidden_states, BlockCall(args, kwargs))


class EmbeddingStandIn(nn.Module):
    """Looks tokens up in a gathered part of the table, through the embedding's own forward (some scale the rows)."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        embedding.padding_idx = None  # rows are renumbered; the table's padding row is handled by its owner
        object.__setattr__(self, "_embedding", embedding)
        self.embedding_dim = embedding.embedding_dim
        self._given: tuple[Tensor, Tensor | None] | None = None

    def bind(self, rows: Tensor, row_of: Tensor | None) -> None:
        """Look up `rows` [u, hidden] at `row_of` [b, t]; without `row_of`, return `rows` as they are."""
        self._given = (rows, row_of)

    def unbind(self) -> None:
        self._given = None

    def forward(self, input_ids: Tensor) -> Tensor:
        assert self._given is not None
        rows, row_of = self._given
        if row_of is None:
            return rows
        return functional_call(object.__getattribute__(self, "_embedding"), {"weight": rows}, (row_of,))


class HeadStandIn(nn.Module):
    """The LM head over a weight handed in, whose gradient goes to an fp32 buffer instead of autograd."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.bias = head.bias
        self.in_features, self.out_features = head.in_features, head.out_features
        self._given: tuple[Tensor, Tensor | None] | None = None

    def bind(self, weight: Tensor, grad: Tensor | None) -> None:
        self._given = (weight, grad)

    def unbind(self) -> None:
        """Let go of the weight and its gradient, whose memory is the largest there is."""
        self._given = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self._given is None:
            raise StopForward  # only what the blocks are called with is wanted
        weight, grad = self._given
        logits = hidden @ weight.mT if grad is None else HeadMatmul.apply(hidden, weight, grad)
        return logits if self.bias is None else logits + self.bias


class HeadMatmul(torch.autograd.Function):
    """logits = hidden @ weight.T; in backward, grad += d_logits.T @ hidden in fp32.

    hidden [..., h] and weight [v, h] in the compute dtype, grad fp32 [v, h].
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(hidden)
        ctx.weight, ctx.grad = weight, grad
        return hidden @ weight.mT

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (hidden,) = ctx.saved_tensors
        flat_hidden, flat_d_logits = hidden.flatten(0, -2), d_logits.flatten(0, -2)
        if flat_hidden.dtype == torch.float32:
            ctx.grad.addmm_(flat_d_logits.mT, flat_hidden)
        elif flat_hidden.is_cuda:
            torch.addmm(ctx.grad, flat_d_logits.mT, flat_hidden, out_dtype=torch.float32, out=ctx.grad)
        else:
            ctx.grad += flat_d_logits.mT.float() @ flat_hidden.float()
        return d_logits @ ctx.weight, None, None
