"""Accumulating gradients without a GPU: PyTorch's form, and the Triton kernel interpreted. tests/gpu has the rest."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accumulations import SIZES, check_accumulation

from slideformer.kernels.accumulate import accumulate, fits_kernel

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("size", SIZES)
def test_sums_on_the_cpu(size: int):
    check_accumulation(accumulate, size, "cpu")


def test_the_cpu_has_no_kernel():
    assert not fits_kernel(torch.zeros(2**20), torch.zeros(2**20, dtype=torch.bfloat16))


def test_interpreted_equals_pytorch():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "interpreted_accumulate"], cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same bits" in done.stdout
