"""What accumulating gradients is compared with, wherever it runs."""

from collections.abc import Callable

import torch
from torch import Tensor

SIZES = (1, 1000, 4096, 70_001)


def check_accumulation(accumulate: Callable[[Tensor, Tensor, bool], None], size: int, device: str) -> None:
    """Three micro-batches, infinities and NaN among them, into memory that held something else."""
    generator = torch.Generator().manual_seed(size)
    gradients = [torch.randn(size, generator=generator).mul(10.0**e).bfloat16().to(device) for e in (-3, 0, 4)]
    gradients[1][0] = float("inf")
    gradients[2][-1] = float("nan")
    memory = torch.full((size + 8,), 7.0, device=device)
    total, expected = memory[:size], gradients[0].float()
    for m, gradient in enumerate(gradients):
        accumulate(total, gradient, m == 0)
        expected = expected + gradient.float() if m else expected
        torch.testing.assert_close(total, expected, rtol=0, atol=0, equal_nan=True)
    assert memory[size:].eq(7.0).all()
