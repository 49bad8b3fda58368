"""A module called with its weights gives what `functional_call` gives, and is as it was before."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from slideformer.models.handed_in import HandedIn


class Tied(nn.Module):
    """Two layers with one weight, and a bias that may make it fail."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if scale < 0:
            raise ValueError("negative")
        return self.second(self.first(x)) * scale


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn(p.shape, requires_grad=True) for name, p in module.named_parameters()}


def test_gives_the_result_and_gradients_of_functional_call():
    with torch.device("meta"):
        module = Tied()
    weights, x = weights_of(module), torch.randn(3, 4)
    assert list(weights) == ["first.weight", "second.bias"]
    results = [HandedIn(module)(weights, x, scale=2.0), functional_call(module, weights, (x,), {"scale": 2.0})]
    gradients = [torch.autograd.grad(y.sum(), list(weights.values())) for y in results]
    assert torch.equal(results[0], results[1])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_leaves_the_module_as_it_was(scale: float):
    module = Tied()
    before, called = dict(module.named_parameters(remove_duplicate=False)), HandedIn(module)
    try:
        called(weights_of(module), torch.randn(3, 4), scale)
    except ValueError:
        assert scale < 0
    after = dict(module.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)


def test_others_keep_their_own():
    module, x = Tied(), torch.randn(3, 4)
    bias = torch.randn(4)
    assert torch.equal(HandedIn(module)({"second.bias": bias}, x), functional_call(module, {"second.bias": bias}, (x,)))
