"""What a gradient flush must do, wherever it runs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

SIZES = [0, 1, 3, 1023, 1025, 50_001]
DTYPES = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
]
TIES = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-23, 3.3895e38, 1e-40, 1e-45, -0.0]


def make_gradient(size: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(size)
    gradient = torch.randn(size)
    ties = torch.tensor(TIES, dtype=torch.float32)[:size]
    gradient[: len(ties)] = ties * (ties < 1e30)  # an infinite sum would hide the others
    return gradient.to(dtype)


def check_flush(
    flush: Callable[[Tensor, Tensor, Tensor, bool], None],
    size: int,
    source_dtype: torch.dtype,
    destination_dtype: torch.dtype,
    device: str,
    tolerance: float,
) -> None:
    source = make_gradient(size, source_dtype).to(device)
    for in_place in (False, True) if source_dtype == destination_dtype else (False,):
        margin = 5  # elements that must stay
        whole = torch.full((size + margin,), 7.0, dtype=destination_dtype, device=device)
        destination = source if in_place else whole[:size]
        square = torch.full((), float("nan"), device=device)
        flush(source, destination, square, False)
        expected = source.to(destination_dtype)
        as_int = torch.int16 if destination_dtype == torch.bfloat16 else torch.int32
        assert torch.equal(destination.view(as_int), expected.view(as_int))
        assert bool((whole[size:] == 7).all())
        exact = float(expected.double().square().sum())
        assert float(square) == pytest.approx(exact, rel=tolerance)
        first = float(square)
        flush(source, destination, square, True)
        assert float(square) == pytest.approx(2 * first, rel=tolerance)
