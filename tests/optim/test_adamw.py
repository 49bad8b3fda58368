"""Every path of the CPU AdamW gives the bits of the written reference, and that those of torch's fused AdamW."""

import ctypes
import ctypes.util
import math
import threading
import time
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slideformer import _core
from slideformer.optim import adamw
from slideformer.optim.adamw import AdamWStep, LayerAdam, adamw_reference
from slideformer.optim.planes import join, split

HYPER = AdamWStep(learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1, step=3)
FLOAT_MAX, FLOAT_MIN_DENORMAL = 3.4028234663852886e38, 1.401298464324817e-45


class Layer:
    """A layer's tensors, once as planes for LayerAdam and once as an fp32 master for the reference."""

    def __init__(self, size: int, seed: int = 0, offset: int = 0):
        torch.manual_seed(seed)
        self.size = size
        self.master = torch.randn(size) * torch.rand(size).pow(8)
        self.exp_avg = torch.randn(size) * 0.01
        self.exp_avg_sq = torch.rand(size).pow(4) * 0.01
        self.hi = torch.empty(size + offset, dtype=torch.bfloat16)[offset:]
        self.lo = torch.empty(size + offset, dtype=torch.int16)[offset:]
        split(self.master, self.hi, self.lo)
        self.m = torch.empty(size + offset)[offset:].copy_(self.exp_avg)
        self.v = torch.empty(size + offset)[offset:].copy_(self.exp_avg_sq)

    def adam(self, spans: list[tuple[int, int, bool]] | None = None, threads: int = 2) -> LayerAdam:
        return LayerAdam(self.hi, self.lo, self.m, self.v, spans or [(0, self.size, True)], threads)

    def reference(self, grad: Tensor, hyper: AdamWStep, start: int = 0, stop: int | None = None, decay: bool = True):
        part = slice(start, stop)
        adamw_reference(self.master[part], self.exp_avg[part], self.exp_avg_sq[part], grad[part], hyper, decay)

    def state(self) -> list[Tensor]:
        joined = torch.empty(self.size)
        join(self.hi, self.lo, joined)
        return [joined, self.m, self.v]

    def assert_equals_reference(self) -> None:
        assert_same_bits(self.state(), [self.master, self.exp_avg, self.exp_avg_sq])


def assert_same_bits(ours: list[Tensor], expected: list[Tensor]) -> None:
    """Equal bit for bit; one NaN is as good as another."""
    for name, a, b in zip(("master", "exp_avg", "exp_avg_sq"), ours, expected, strict=True):
        different = (a.view(torch.int32) != b.view(torch.int32)) & ~(a.isnan() & b.isnan())
        assert not different.any(), f"{name} differs at {different.nonzero().flatten()[:8].tolist()}"


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SLIDEFORMER_ISA", request.param)
    assert _core.selected_isa() == request.param
    return request.param


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95), (0.3, 0.5)])
def test_fifty_steps_equal_torch_fused(isa: str, betas: tuple[float, float]):
    layer = Layer(16 * 64)  # whole vectors: torch's own tail is not fused multiply-add
    layer.master[:32] *= 1e-38
    layer.master[32:48] *= 1e30
    split(layer.master, layer.hi, layer.lo)
    parameter = torch.nn.Parameter(layer.master.clone())
    optimizer = torch.optim.AdamW([parameter], lr=2e-3, betas=betas, eps=1e-8, weight_decay=0.1, fused=True)
    layer.m.zero_()
    layer.v.zero_()
    adam = layer.adam()
    for step in range(1, 51):
        grad = torch.randn(layer.size) * torch.rand(layer.size).pow(12)
        grad[step % 7 :: 7] = 0
        grad[:8] *= 1e-38
        grad[100:108] *= 1e18
        parameter.grad = grad.clone()
        optimizer.step()
        adam.step(grad, AdamWStep(2e-3, *betas, 1e-8, 0.1, step))
    state = optimizer.state[parameter]
    assert_same_bits(layer.state(), [parameter.data, state["exp_avg"], state["exp_avg_sq"]])


@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("size", "offset"), [(1, 0), (7, 1), (16, 3), (31, 0), (33, 5), (1000, 7)])
def test_equals_the_reference_at_any_size_and_alignment(isa: str, grad_dtype: torch.dtype, size: int, offset: int):
    layer = Layer(size, seed=size, offset=offset)
    adam = layer.adam()
    for step in range(1, 4):
        grad = torch.randn(size + offset).to(grad_dtype)[offset:]
        hyper = replace(HYPER, step=step, grad_scale=0.37)
        adam.step(grad, hyper)
        layer.reference(grad, hyper)
    layer.assert_equals_reference()


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(finite, finite, positive, finite), min_size=1, max_size=40), st.integers(1, 10**6))
def test_equals_the_reference_on_extremes(values: list[tuple[float, float, float, float]], step: int):
    master, m, v, grad = (torch.tensor(column, dtype=torch.float32) for column in zip(*values, strict=True))
    layer = Layer(len(values))
    split(master, layer.hi, layer.lo)
    layer.master, layer.exp_avg, layer.exp_avg_sq = master, m, v
    layer.m.copy_(m)
    layer.v.copy_(v)
    hyper = replace(HYPER, step=step)
    layer.adam().step(grad, hyper)
    layer.reference(grad, hyper)
    layer.assert_equals_reference()


def test_special_values_pass_through(isa: str):
    grad = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, FLOAT_MAX, FLOAT_MIN_DENORMAL, 1.0] * 3)
    layer = Layer(grad.numel())
    layer.adam().step(grad, HYPER)
    layer.reference(grad, HYPER)
    layer.assert_equals_reference()
    assert layer.state()[0].isnan()[[4, 12, 20]].all()  # a NaN gradient shows in the weight


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads_change_no_bit(threads: int):
    layer = Layer(100_003)
    spans = [(0, 5, False), (5, 40_000, True), (40_000, 40_001, False), (40_001, 100_003, True)]
    grad = torch.randn(layer.size).bfloat16()
    layer.adam(spans, threads).step(grad, HYPER)
    for start, stop, decay in spans:
        layer.reference(grad, HYPER, start, stop, decay)
    layer.assert_equals_reference()


def test_what_no_span_covers_stays():
    layer, before = Layer(100), Layer(100)
    layer.adam([(10, 20, True), (50, 60, False)]).step(torch.randn(100), HYPER)
    changed = (layer.state()[0] != before.state()[0]).nonzero().flatten().tolist()
    assert changed == [*range(10, 20), *range(50, 60)]


def test_no_gradient_is_a_gradient_of_zeros(isa: str):
    layer = Layer(100)
    layer.adam().step(None, HYPER)
    layer.reference(torch.zeros(100), HYPER)
    layer.assert_equals_reference()


WIDTH, TABLE_ROWS = 40, 50
ROW_SETS = [[], [0], [49], [3, 4, 5, 20, 49], [0, 1, 48, 49], list(range(TABLE_ROWS))]


@pytest.mark.parametrize("rows", ROW_SETS, ids=len)
@pytest.mark.parametrize("dense", [True, False])
def test_rows_and_all_but_rows_make_the_whole_step(isa: str, rows: list[int], dense: bool):
    """With a gradient everywhere (tied head), and with none outside the rows (embedding alone)."""
    padding = 8  # elements after the table
    layer = Layer(TABLE_ROWS * WIDTH + padding)
    index = torch.tensor(rows, dtype=torch.int64)
    grad = torch.randn(layer.size)
    compact = grad[:-padding].view(TABLE_ROWS, WIDTH)[index]
    adam = layer.adam()
    adam.step_rows(index, compact, HYPER, WIDTH)
    adam.step_except_rows(index, grad if dense else None, HYPER, WIDTH)
    if not dense:
        grad = torch.zeros_like(grad)
        grad[:-padding].view(TABLE_ROWS, WIDTH)[index] = compact
    layer.reference(grad, HYPER)
    layer.assert_equals_reference()


def test_rows_without_gradient_and_without_decay():
    layer = Layer(TABLE_ROWS * WIDTH)
    rows = torch.tensor([2, 7])
    layer.adam([(0, layer.size, False)]).step_rows(rows, None, HYPER, WIDTH)
    for row in rows.tolist():
        layer.reference(torch.zeros(layer.size), HYPER, row * WIDTH, (row + 1) * WIDTH, decay=False)
    layer.assert_equals_reference()


def test_many_thousand_rows_across_threads():
    table_rows, width = 30_000, 24
    layer = Layer(table_rows * width)
    rows = torch.randperm(table_rows)[:9_000].sort().values
    grad = torch.randn(table_rows, width).bfloat16()
    adam = layer.adam(threads=3)
    adam.step_rows(rows, grad[rows], HYPER, width)
    adam.step_except_rows(rows, grad.flatten(), HYPER, width)
    layer.reference(grad.flatten(), HYPER)
    layer.assert_equals_reference()


def test_other_python_threads_run_meanwhile():
    layer = Layer(8_000_000)
    adam, grad = layer.adam(threads=1), torch.randn(layer.size)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        for _ in range(20):  # a busy machine may not schedule the ticker at once
            start = time.perf_counter()
            adam.step(grad, HYPER)
            stop_time = time.perf_counter()
            quarter = (stop_time - start) / 4
            if any(start + quarter < t < stop_time - quarter for t in ticks):
                return
    finally:
        stop.set()
        ticker.join()
    pytest.fail("no other Python thread ran during a step")


def test_wrong_tensors_are_refused():
    layer, whole = Layer(10), [(0, 10, True)]
    with pytest.raises(TypeError, match="lo is contiguous torch.int32 on cpu; it must be contiguous int16"):
        LayerAdam(layer.hi, layer.lo.int(), layer.m, layer.v, whole)
    with pytest.raises(TypeError, match="exp_avg is strided"):
        LayerAdam(layer.hi, layer.lo, torch.zeros(20)[::2], layer.v, whole)
    with pytest.raises(ValueError, match=r"exp_avg_sq has shape \[9\]; expected \[10\]"):
        LayerAdam(layer.hi, layer.lo, layer.m, layer.v[:9], whole)
    with pytest.raises(ValueError, match=r"\[5, 11\) lies outside a layer of 10"):
        LayerAdam(layer.hi, layer.lo, layer.m, layer.v, [(5, 11, True)])


def test_wrong_gradients_rows_and_steps_are_refused():
    layer = Layer(TABLE_ROWS * WIDTH)
    adam = layer.adam()
    with pytest.raises(TypeError, match="grad is contiguous torch.float16"):
        adam.step(torch.zeros(layer.size).half(), HYPER)
    with pytest.raises(ValueError, match="grad has shape"):
        adam.step(torch.zeros(layer.size - 1), HYPER)
    for rows in ([3, 3], [4, 2], [-1, 2], [TABLE_ROWS]):
        with pytest.raises(ValueError, match="rows must ascend"):
            adam.step_rows(torch.tensor(rows), None, HYPER, WIDTH)
    with pytest.raises(ValueError, match="one decay setting"):
        layer.adam([(0, 40, True), (40, 80, False)]).step_rows(torch.tensor([0]), None, HYPER, WIDTH)
    with pytest.raises(ValueError, match="the first step is 1"):
        adam.step(None, replace(HYPER, step=0))
    layer.assert_equals_reference()  # nothing was touched


@pytest.mark.parametrize(
    "spans",
    [[[0, 5, 0, 1], [4, 8, 4, 1]], [[0, 11, -1, 1]], [[6, 5, 0, 1]], [[0, 5, 6, 1]], [[0, 5, -2, 1]], [[0, 5, 0, 2]]],
    ids=["overlap", "past the layer", "backwards", "past the gradient", "before the gradient", "decay"],
)
def test_spans_that_would_leave_memory_are_refused(spans: list[list[int]]):
    layer = Layer(10)
    with pytest.raises(ValueError, match=r"span \d .*overlaps the one before it, or leaves"):
        _core.adamw(
            layer.hi,
            layer.lo,
            layer.m,
            layer.v,
            torch.zeros(10),
            torch.tensor(spans),
            **vars(HYPER.scalars()),
            num_threads=1,
        )


def test_an_unavailable_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLIDEFORMER_ISA", "mmx")
    with pytest.raises(RuntimeError, match="SLIDEFORMER_ISA=mmx is not available here; .*portable"):
        Layer(4).adam().step(None, HYPER)


@cache
def libm(name: str, arguments: int):
    """A correctly rounded function of the C library."""
    function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * arguments
    return function


def random_finite(count: int, exponents: tuple[int, int] = (0, 255)) -> Tensor:
    """[count] float32 of random signs and mantissas, biased exponents in [low, high)."""
    sign, exponent, mantissa = (torch.randint(*limits, (count,)) for limits in ((0, 2), exponents, (0, 2**23)))
    return ((sign << 31) + (exponent << 23) + mantissa).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("exponents", [(0, 255), (120, 134), (0, 3), (250, 255)], ids=str)
def test_reference_fma_rounds_once(exponents: tuple[int, int]):
    torch.manual_seed(0)
    a, b, c = random_finite(5000, exponents), random_finite(5000, (120, 134)), random_finite(5000, exponents)
    fma = libm("fmaf", 3)
    expected = torch.tensor([fma(*abc) for abc in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)])
    assert torch.equal(adamw._fma(a, b, c).view(torch.int32), expected.view(torch.int32))


def test_reference_fma_where_rounding_twice_is_wrong():
    # 1 + 2^-23 + 2^-24 - 2^-70: in float64 the last term is lost, and what is left is a tie that rounds up.
    a, b, c = (torch.tensor([x]) for x in (2.0**-12 * (1 + 2.0**-23), 2.0**-12 * (1 - 2.0**-23), 1 + 2.0**-23))
    assert (a.double() * b.double() + c.double()).float().item() == 1 + 2.0**-22
    assert adamw._fma(a, b, c).item() == 1 + 2.0**-23


def test_reference_sqrt_is_correctly_rounded():
    torch.manual_seed(0)
    x = random_finite(20_000).abs()
    sqrt = libm("sqrtf", 1)
    assert torch.equal(adamw._sqrt(x), torch.tensor([sqrt(value) for value in x.tolist()]))


@pytest.mark.gpu
def test_reference_on_a_gpu_equals_the_cpu_path():
    layer = Layer(100_003)
    grad = torch.randn(layer.size).bfloat16()
    master, exp_avg, exp_avg_sq = layer.master.cuda(), layer.exp_avg.cuda(), layer.exp_avg_sq.cuda()
    adam = layer.adam()
    for step in range(1, 11):
        hyper = replace(HYPER, step=step, grad_scale=0.7)
        adam.step(grad, hyper)
        adamw_reference(master, exp_avg, exp_avg_sq, grad.cuda(), hyper, decay=True)
    assert_same_bits(layer.state(), [master.cpu(), exp_avg.cpu(), exp_avg_sq.cpu()])
