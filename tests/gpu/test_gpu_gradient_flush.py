"""The gradient flush on a GPU: values, sums, special numbers, repeatability, and no copy in fp32."""

import math

import pytest
import torch
from gradient_flushes import DTYPES, SIZES, check_flush, make_gradient

from slideformer.kernels.gradient_flush import GradientFlush

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")


@pytest.mark.parametrize(("source", "destination"), DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 20_000_003])
def test_rounds_and_sums(size: int, source: torch.dtype, destination: torch.dtype):
    check_flush(GradientFlush(DEVICE), size, source, destination, "cuda", tolerance=1e-6)


@pytest.mark.parametrize("offset", [1, 8])
def test_slices_at_any_alignment(offset: int):
    values = make_gradient(10_007, torch.float32).cuda()[offset:]
    outgoing = torch.empty(10_007, dtype=torch.bfloat16, device="cuda")[offset:]
    square = torch.zeros((), device="cuda")
    GradientFlush(DEVICE)(values, outgoing, square)
    assert torch.equal(outgoing, values.bfloat16())
    assert float(square) == pytest.approx(float(outgoing.double().square().sum()), rel=1e-6)


def test_other_dtypes_take_pytorchs_way():
    values = torch.randn(1000, device="cuda")
    outgoing, square = torch.empty(1000, dtype=torch.float16, device="cuda"), torch.zeros((), device="cuda")
    GradientFlush(DEVICE)(values, outgoing, square)
    assert torch.equal(outgoing, values.half())
    assert float(square) == pytest.approx(float(outgoing.double().square().sum()), rel=1e-5)


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, 3.4e38])
@pytest.mark.parametrize("place", [0, 70_000, 100_002])
def test_what_is_not_finite_shows_in_the_sum(special: float, place: int):
    values = torch.zeros(100_003, device="cuda")
    values[place] = special
    outgoing, square = torch.empty_like(values, dtype=torch.bfloat16), torch.zeros((), device="cuda")
    GradientFlush(DEVICE)(values, outgoing, square)
    assert not math.isfinite(float(square))
    assert torch.equal(outgoing.isnan(), values.isnan())
    assert torch.equal(outgoing.isinf(), values.bfloat16().isinf())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_sum_every_time(dtype: torch.dtype):
    flush = GradientFlush(DEVICE)
    values = torch.randn(50_000_001, device="cuda").to(dtype)
    squares = torch.zeros(20, device="cuda")
    for square in squares:
        flush(values, values, square)
    assert len(set(squares.tolist())) == 1


@pytest.mark.parametrize(("source", "destination"), DTYPES, ids=str)
def test_no_memory_is_taken(source: torch.dtype, destination: torch.dtype):
    flush = GradientFlush(DEVICE)
    values, outgoing = (torch.zeros(10_000_000, dtype=dtype, device="cuda") for dtype in (source, destination))
    square = torch.zeros((), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    flush(values, outgoing, square)
    flush(outgoing, outgoing, square, True)
    assert torch.cuda.max_memory_allocated() == before
