"""Hidden states of any shape, token by token and back."""

import pytest
import torch

from slideformer.errors import UnsupportedModel
from slideformer.models.boundary import Boundary

SHAPES = {"plain": ("b", "t", 6), "streams inside": ("b", "t", 4, 6), "streams in front": (4, "b", "t", 6)}


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_a_shape_is_learnt_and_taken_apart_by_tokens(sizes: tuple):
    def of(b: int, t: int) -> torch.Size:
        return torch.Size([b if size == "b" else t if size == "t" else size for size in sizes])

    boundary = Boundary.learn({(2, 3): of(2, 3), (5, 7): of(5, 7)})
    assert boundary.sizes == sizes and boundary.of(8, 9) == of(8, 9)
    x = torch.randn(of(2, 5))
    tokens = boundary.by_token(x)
    assert tokens.shape[0] == 10 and tokens[0].numel() == boundary.elements_per_token
    assert torch.equal(boundary.from_tokens(tokens, 2), x)
    single = boundary.from_tokens(tokens[3:7], 4)
    assert single.shape == of(4, 1) and torch.equal(boundary.by_token(single), tokens[3:7])


@pytest.mark.parametrize(("one", "other"), [((2, 35, 6), (5, 39, 6)), ((6, 6), (35, 6)), ((2, 3, 6), (5, 7, 8))])
def test_tokens_that_are_added_or_merged_are_refused(one: tuple, other: tuple):
    with pytest.raises(UnsupportedModel, match="adds or merges tokens"):
        Boundary.learn({(2, 3): torch.Size(one), (5, 7): torch.Size(other)})
