"""Modules that take the places of blocks, embedding and head while the model's own forward runs."""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from slideformer.errors import UnsupportedModel
from slideformer.models.block_call import BlockCall
from slideformer.models.head_matmul import HeadMatmul
from slideformer.models.packed_attention import Documents


@dataclass(frozen=True)
class DecoderInputs:
    """What enters the blocks: hidden states, per block the rest of its call, and packed documents.

    The rest may have a gradient too, such as embeddings that the model hands to each block; it is collected here.
    """

    hidden: Tensor
    calls: list[BlockCall]
    documents: Documents | None = None
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def add_gradients(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Add to the gradients of tensors that calls hold; one tensor may be in many calls."""
        for tensor, gradient in zip(tensors, gradients, strict=False):
            if gradient is not None:
                sum_so_far = self.gradients.get(id(tensor))
                self.gradients[id(tensor)] = gradient.float() if sum_so_far is None else sum_so_far.add_(gradient)

    def gradient_of(self, tensor: Tensor) -> Tensor | None:
        """fp32, of its shape."""
        return self.gradients.get(id(tensor))


NOT_HIDDEN = object()  # what a block returns beside hidden states: it must not be what the next one needs
NOT_STREAMABLE = UnsupportedModel(
    "the model passes more than hidden states from block to block",
    "only models whose blocks are connected by hidden states alone can be streamed",
)


class Handover(dict[Any, Any]):
    """An empty mapping that all blocks are called with: what one leaves there, another may want, which is refused."""

    def __init__(self, name: str):
        super().__init__()
        self._name = name

    def __setitem__(self, key: Any, value: Any) -> None:
        pass  # kept by nobody, so that it does not hold memory

    def __getitem__(self, key: Any) -> Any:
        raise UnsupportedModel(
            f"a block needs what an earlier one left in {self._name}",
            "only models whose blocks are connected by hidden states alone can be streamed",
        )

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]


class StopForward(Exception):
    """Raised by the last block's stand-in when everything the blocks need has been recorded."""


class BlockChain:
    """What the stand-ins of one model share: they either record how blocks are called, or pass `hidden` through.

    Attributes:
        arity: how many values the model's forward expects of a block; 0 is a bare tensor.
        extra: what stands for the values beside hidden states. None, if the model hands them to the next block, where
            only None is harmless.
    """

    def __init__(self, length: int):
        self.length = length
        self.arity = 0
        self.extra: Any = NOT_HIDDEN
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
        if any(given is NOT_HIDDEN for given in (*call.args, *call.kwargs.values())):
            raise NOT_STREAMABLE
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
        handed = {k: Handover(k) if isinstance(v, MutableMapping) and not v else v for k, v in call.kwargs.items()}
        self.recorded.append((hidden, BlockCall(call.args, handed)))
        if len(self.recorded) == self.length:
            raise StopForward
        return self.as_output(hidden)

    def as_output(self, hidden: Tensor) -> Any:
        return (hidden, *[self.extra] * (self.arity - 1)) if self.arity else hidden

    def take(self) -> DecoderInputs:
        """What was recorded."""
        recorded = self.recorded
        if len(recorded) != self.length:
            raise UnsupportedModel(
                f"the model's forward called {len(recorded)} of its {self.length} blocks",
                "models that skip, repeat or reorder blocks cannot be streamed",
            )
        self.recorded = []
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

    @property
    def weight(self) -> Tensor:
        """For models that ask it for its device or dtype."""
        assert self._given is not None
        return self._given[0]

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
        self._product: Callable[[], Tensor] | None = None
        self._capturing = False
        self.captured: Tensor | None = None

    def bind(self, weight: Tensor, grad: Tensor | None) -> None:
        self._given = (weight, grad)

    def bind_product(self, product: Callable[[], Tensor], weight: Tensor) -> None:
        """Give what `product` gives, whatever comes in; `weight` only for models that ask for it."""
        self._product, self._given = product, (weight, None)

    def capture(self) -> None:
        """Keep what comes in as `captured`, and end the forward there."""
        self._capturing = True

    def unbind(self) -> None:
        """Let go of the weight and its gradient, whose memory is the largest there is."""
        self._given = self._product = self.captured = None
        self._capturing = False

    @property
    def weight(self) -> Tensor:
        """For models that ask it for its device or dtype."""
        if self._given is None:
            raise StopForward
        return self._given[0]

    def forward(self, hidden: Tensor) -> Tensor:
        if self._capturing:
            self.captured = hidden
            raise StopForward
        if self._given is None:
            raise StopForward  # only what the blocks are called with is wanted
        if self._product is not None:
            return self._product() if self.bias is None else self._product() + self.bias
        weight, grad = self._given
        if weight.stride(0) == 0:  # a probe's: one row that stands for all, as a product would copy it that often
            logits = (hidden @ weight[0]).unsqueeze(-1).expand(*hidden.shape[:-1], len(weight))
        else:
            logits = hidden @ weight.mT if grad is None else HeadMatmul.apply(hidden, weight, grad)
        return logits if self.bias is None else logits + self.bias
