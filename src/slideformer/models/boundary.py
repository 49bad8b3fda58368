"""What lies between two blocks: hidden states of one shape, whatever the family makes of it."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from slideformer.errors import UnsupportedModel

Size = int | Literal["b", "t"]


@dataclass(frozen=True)
class Boundary:
    """The shape of hidden states for any b sequences of t tokens: mostly ("b", "t", hidden); some families carry
    several streams, ("b", "t", 4, hidden) or (4, "b", "t", hidden)."""

    sizes: tuple[Size, ...]

    @staticmethod
    def learn(shapes: dict[tuple[int, int], torch.Size]) -> "Boundary":
        """From the shapes of two probes, by their (b, t), all four numbers different.

        Raises:
            UnsupportedModel: a size is neither constant nor that of the tokens.
        """
        (one, of_one), (other, of_other) = shapes.items()
        names: dict[tuple[int, int], Size] = {(one[0], other[0]): "b", (one[1], other[1]): "t"}
        found: list[Size] = [
            names.get(pair, pair[0] if pair[0] == pair[1] else -1) for pair in zip(of_one, of_other, strict=False)
        ]
        if len(of_one) != len(of_other) or -1 in found or found.count("b") != 1 or found.count("t") != 1:
            raise UnsupportedModel(
                f"hidden states of {list(one)} tokens are {list(of_one)}: the model adds or merges tokens",
                "only models with one hidden state for each token can be streamed",
            )
        return Boundary(tuple(found))

    @property
    def elements_per_token(self) -> int:
        return prod(size for size in self.sizes if isinstance(size, int))

    def of(self, b: int, t: int) -> torch.Size:
        of_tokens = {"b": b, "t": t}
        return torch.Size([of_tokens[size] if isinstance(size, str) else size for size in self.sizes])

    def by_token(self, hidden: Tensor) -> Tensor:
        """[b * t, ...]: one row for each token, row after row of the batch."""
        return hidden.movedim(self._places, (0, 1)).flatten(0, 1)

    def from_tokens(self, tokens: Tensor, b: int) -> Tensor:
        """The hidden states of b sequences that `by_token` gives as `tokens` [b * t, ...]."""
        return tokens.unflatten(0, (b, -1)).movedim((0, 1), self._places)

    @property
    def _places(self) -> tuple[int, int]:
        return self.sizes.index("b"), self.sizes.index("t")
