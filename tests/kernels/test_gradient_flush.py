"""The gradient flush without a GPU: PyTorch's form, and the Triton kernels interpreted. tests/gpu has the rest."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gradient_flushes import DTYPES, SIZES, check_flush

from slideformer.kernels.gradient_flush import GradientFlush

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(("source", "destination"), DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rounds_and_sums_on_the_cpu(size: int, source: torch.dtype, destination: torch.dtype):
    check_flush(GradientFlush(torch.device("cpu")), size, source, destination, "cpu", tolerance=1e-5)


def test_the_sum_is_of_the_rounded_values():
    values = torch.full((1000,), 1 + 2**-8 + 2**-20)  # rounds up to 1 + 2^-7
    square = torch.zeros(())
    GradientFlush(torch.device("cpu"))(values, torch.empty(1000, dtype=torch.bfloat16), square)
    assert float(square) == pytest.approx(1000 * (1 + 2**-7) ** 2, rel=1e-6)


def test_interpreted_equals_pytorch():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "interpreted_flush"], cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same values" in done.stdout
