"""Accumulating gradients on a GPU gives PyTorch's bits, by the kernel where it is for."""

import pytest
import torch
from accumulations import SIZES, check_accumulation

from slideformer.kernels.accumulate import SMALL, accumulate, fits_kernel

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("size", [*SIZES, SMALL, 10_000_019])
def test_sums_as_pytorch(size: int):
    check_accumulation(accumulate, size, "cuda")


def test_large_contiguous_gradients_take_the_kernel():
    total, gradient = torch.zeros(512, 256, device="cuda"), torch.ones(512, 256, dtype=torch.bfloat16, device="cuda")
    assert fits_kernel(total, gradient)
    assert not fits_kernel(total, torch.ones(256, 512, dtype=torch.bfloat16, device="cuda").T)
    assert not fits_kernel(total[:8], gradient[:8])
