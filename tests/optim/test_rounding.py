"""bf16 moments: unbiased, never negative, a function of seed, step, unit and element; the same bits on every path."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slideformer import _core
from slideformer.optim.adamw import AdamWStep, LayerAdam, adamw_reference
from slideformer.optim.planes import join, split
from slideformer.optim.rounding import LOW_16, Rounding, random_bits, round_stochastically

HYPER = AdamWStep(learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1, step=3)
ROUNDING = Rounding(seed=7, unit=4)
LARGEST_BF16 = 3.3895313892515355e38


class Layer:
    """A layer with bf16 moments, once as planes for LayerAdam and once as an fp32 master for the reference."""

    def __init__(self, size: int, offset: int = 0):
        torch.manual_seed(size)
        self.master = torch.randn(size)
        self.hi, self.lo = torch.empty(size, dtype=torch.bfloat16), torch.empty(size, dtype=torch.int16)
        split(self.master, self.hi, self.lo)
        moments = (torch.randn(size) * 0.01, torch.rand(size).pow(4) * 0.01)
        self.m, self.v = (torch.empty(size + offset).bfloat16()[offset:].copy_(moment) for moment in moments)
        self.reference_m, self.reference_v = self.m.clone(), self.v.clone()

    def adam(self, spans: list[tuple[int, int, bool]] | None = None, threads: int = 2) -> LayerAdam:
        spans = spans or [(0, self.master.numel(), True)]
        return LayerAdam(self.hi, self.lo, self.m, self.v, spans, threads, ROUNDING)

    def reference(self, grad: Tensor, hyper: AdamWStep, start: int = 0, stop: int | None = None, decay: bool = True):
        tensors = (self.master, self.reference_m, self.reference_v, grad)
        master, m, v, grad = (tensor[start:stop] for tensor in tensors)
        adamw_reference(master, m, v, grad, hyper, decay, ROUNDING, first=start)

    def assert_equals_reference(self) -> None:
        joined = torch.empty_like(self.master)
        join(self.hi, self.lo, joined)
        assert torch.equal(joined.view(torch.int32), self.master.view(torch.int32))
        assert torch.equal(self.m.view(torch.int16), self.reference_m.view(torch.int16))
        assert torch.equal(self.v.view(torch.int16), self.reference_v.view(torch.int16))


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SLIDEFORMER_ISA", request.param)
    return request.param


@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("size", "offset"), [(1, 0), (7, 1), (16, 3), (31, 0), (33, 5), (1000, 7)])
def test_equals_the_reference_at_any_size_and_alignment(isa: str, grad_dtype: torch.dtype, size: int, offset: int):
    layer = Layer(size, offset)
    adam = layer.adam()
    for step in range(1, 6):
        grad = torch.randn(size).to(grad_dtype)
        hyper = replace(HYPER, step=step, grad_scale=0.37)
        adam.step(grad, hyper)
        layer.reference(grad, hyper)
    layer.assert_equals_reference()


@pytest.mark.parametrize("threads", [1, 3])
def test_neither_spans_nor_threads_change_a_bit(isa: str, threads: int):
    layer = Layer(100_003)
    spans = [(0, 5, False), (5, 40_000, True), (40_000, 40_001, False), (40_001, 100_003, True)]
    grad = torch.randn(layer.master.numel()).bfloat16()
    layer.adam(spans, threads).step(grad, HYPER)
    for start, stop, decay in spans:
        layer.reference(grad, HYPER, start, stop, decay)
    layer.assert_equals_reference()


@pytest.mark.parametrize("rows", [[], [0], [3, 4, 5, 20, 49], list(range(50))], ids=len)
@pytest.mark.parametrize("dense", [True, False])
def test_rows_and_all_but_rows_make_the_whole_step(isa: str, rows: list[int], dense: bool):
    width, table_rows = 40, 50
    layer = Layer(table_rows * width + 8)
    index = torch.tensor(rows, dtype=torch.int64)
    grad = torch.randn(layer.master.numel())
    compact = grad[:-8].view(table_rows, width)[index]
    adam = layer.adam()
    adam.step_rows(index, compact, HYPER, width)
    adam.step_except_rows(index, grad if dense else None, HYPER, width)
    if not dense:
        grad = torch.zeros_like(grad)
        grad[:-8].view(table_rows, width)[index] = compact
    layer.reference(grad, HYPER)
    layer.assert_equals_reference()


def test_extremes_pass_through(isa: str):
    """Infinite and NaN gradients, moments at the edge of bf16, and what only just is not zero."""
    grad = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, LARGEST_BF16, 1e-45, 1.0] * 6)
    layer = Layer(grad.numel())
    for m in (layer.m, layer.reference_m):
        m[8:16], m[16:24] = LARGEST_BF16, 1e-40
    for v in (layer.v, layer.reference_v):
        v[8:16], v[16:24], v[24:32] = LARGEST_BF16, 1e-40, math.inf
    layer.adam().step(grad, HYPER)
    layer.reference(grad, HYPER)
    for ours, theirs in ((layer.m, layer.reference_m), (layer.v, layer.reference_v)):
        assert torch.equal(ours.nan_to_num(nan=7.0), theirs.nan_to_num(nan=7.0))  # one NaN is as good as another
        assert ours[grad.isnan()].isnan().all()


def test_a_nan_of_any_payload_stays_nan(isa: str):
    layer = Layer(64)
    grad = torch.full((64,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    grad[32:] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    layer.adam().step(grad, HYPER)
    assert layer.m.isnan().all() and layer.v.isnan().all()
    quiet = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert round_stochastically(quiet, torch.full((3,), LOW_16)).isnan().all()


def test_zeros_stay_zero_and_squares_stay_positive(isa: str):
    layer = Layer(10_000)
    layer.m.zero_()
    layer.v.zero_()
    adam = layer.adam()
    adam.step(torch.zeros(10_000), HYPER)
    assert not layer.m.any() and not layer.v.any()
    for step in range(1, 50):
        adam.step(torch.randn(10_000) * 1e-20, replace(HYPER, step=step))  # squares among the denormals
    assert (layer.v >= 0).all()


def test_the_weight_moves_by_the_exact_moments():
    one, other = Layer(1000), Layer(1000)
    exact_m, exact_v = one.m.float(), one.v.float()
    grad = torch.randn(1000)
    one.adam().step(grad, HYPER)
    LayerAdam(other.hi, other.lo, exact_m, exact_v, [(0, 1000, True)], 1).step(grad, HYPER)
    assert torch.equal(one.hi.view(torch.int16), other.hi.view(torch.int16)) and torch.equal(one.lo, other.lo)
    assert not torch.equal(one.m.float(), exact_m)


def test_missed_steps_correct_the_bias_and_not_the_random_bits():
    one, other = Layer(1000), Layer(1000)
    grad = torch.randn(1000)
    one.adam().step(grad, replace(HYPER, step=9, missed=4))
    other.adam().step(grad, replace(HYPER, step=9))
    assert torch.equal(one.m, other.m) and torch.equal(one.v, other.v)
    third = Layer(1000)
    third.adam().step(grad, replace(HYPER, step=5))
    assert torch.equal(one.lo, third.lo) and not torch.equal(one.lo, other.lo)


# ---- the random bits


def test_the_hash_is_the_published_one():
    """lowbias32(x), computed here with Python's integers; a key of zero leaves it as it is."""

    def lowbias32(x: int) -> int:
        for multiplier, shift in ((0x7FEB352D, 16), (0x846CA68B, 15)):
            x = (x ^ x >> shift) * multiplier % 2**32
        return x ^ x >> 16

    index = torch.tensor([0, 1, 2, 12345, 2**31, 2**32 - 1, 2**32 + 1])
    assert random_bits(0, index).tolist() == [lowbias32(i % 2**32) for i in index.tolist()]


def test_a_key_is_one_of_seed_step_and_unit():
    keys = {Rounding(seed, unit).key(step) for seed in range(4) for unit in range(4) for step in range(1, 5)}
    assert len(keys) == 64
    assert Rounding(1, 2).key(3) == Rounding(1, 2).key(3)
    flipped = [Rounding(42, 3).key(step) ^ Rounding(42, 3).key(step + 1) for step in range(200)]
    assert 30 < sum(bits.bit_count() for bits in flipped) / 200 < 34  # half of 64


@pytest.mark.parametrize("half", [0, 16], ids=["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("along", ["elements", "steps", "units"])
def test_random_bits_are_uniform_in_every_direction(half: int, along: str):
    count = 1 << 16
    if along == "elements":
        bits = random_bits(ROUNDING.key(1), torch.arange(count))
    else:
        keys = (ROUNDING.key(n) if along == "steps" else Rounding(7, n).key(1) for n in range(count))
        bits = torch.cat([random_bits(key, torch.tensor([5])) for key in keys])
    bits = bits >> half & LOW_16
    counts = torch.bincount(bits >> 8, minlength=256).double()  # chi-squared: mean 255, deviation 22.6
    assert ((counts - count / 256) ** 2 / (count / 256)).sum() < 255 + 5 * 22.6
    pairs = torch.corrcoef(torch.stack([bits[:-1], bits[1:]]).double())[0, 1]
    assert abs(pairs) < 5 / math.sqrt(count)


def test_both_moments_of_an_element_and_two_steps_are_independent():
    index = torch.arange(1 << 20)
    one, other = (random_bits(ROUNDING.key(step), index) for step in (1, 2))
    series = torch.stack([one & LOW_16, one >> 16, other & LOW_16, other >> 16]).double()
    correlations = torch.corrcoef(series) - torch.eye(4)
    assert correlations.abs().max() < 5 / math.sqrt(index.numel())


@pytest.mark.parametrize("value", [1.001, -1.001, 0.7, 3.1415927, 1e-30, 1e-39, -2.5e20])
def test_rounding_is_right_on_average(value: float):
    count = 1 << 20
    random = random_bits(ROUNDING.key(1), torch.arange(count)) & LOW_16
    rounded = round_stochastically(torch.full((count,), value), random).double()
    exact, step = torch.tensor(value).double(), (rounded.max() - rounded.min()).item()
    assert rounded.unique().numel() == 2 and rounded.min() < exact < rounded.max()
    assert abs(rounded.mean() - exact) < 5 * step / 2 / math.sqrt(count)


def test_what_bf16_holds_is_kept_and_beyond_it_lies_infinity():
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    for random in (0, LOW_16):
        kept = round_stochastically(every.float(), torch.full((2**16,), random))
        assert torch.equal(kept.nan_to_num(nan=7.0), every.nan_to_num(nan=7.0))
    beyond = torch.tensor([3.4e38, -3.4e38])
    assert round_stochastically(beyond, torch.full((2,), LOW_16)).tolist() == [math.inf, -math.inf]
    assert round_stochastically(beyond, torch.zeros(2, dtype=torch.int64)).isfinite().all()


def test_the_second_moment_does_not_stall():
    """At beta2 = 0.999 a step adds far less than half a bf16 step to `v`: rounding to nearest would stay for ever."""
    size, squares = 4096, 0.5
    layer = Layer(size)
    layer.v.fill_(1.0)
    adam, expected, nearest = layer.adam(), 1.0, torch.tensor(1.0, dtype=torch.bfloat16)
    for step in range(1, 501):
        adam.step(torch.full((size,), math.sqrt(squares)), replace(HYPER, step=step))
        expected += 0.001 * (squares - expected)
        nearest = (nearest.float() + 0.001 * (squares - nearest.float())).bfloat16()
    assert nearest == 1.0
    assert abs(layer.v.float().mean().item() - expected) < 0.002  # 0.803


def test_moments_of_two_types_are_refused():
    layer = Layer(10)
    with pytest.raises(
        TypeError, match="exp_avg_sq is contiguous torch.float32 on cpu; it must be contiguous bfloat16"
    ):
        LayerAdam(layer.hi, layer.lo, layer.m, layer.v.float(), [(0, 10, True)])
    with pytest.raises(TypeError, match="exp_avg_sq must be bfloat16, as exp_avg"):
        spans = torch.tensor([[0, 10, 0, 1]])
        scalars = vars(HYPER.scalars())
        _core.adamw(layer.hi, layer.lo, layer.m, layer.v.float(), None, spans, **scalars, num_threads=1)
