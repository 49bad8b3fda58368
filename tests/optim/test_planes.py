"""Two 16-bit planes hold every fp32 value, and the high one is its bf16 rounding."""

import pytest
import torch
from torch import Tensor

from slideformer.optim.planes import join, join_reference, split, split_reference

LOW_HALVES = [0, 1, 2, 0x1234, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xABCD, 0xFFFE, 0xFFFF]


def every_high_half() -> Tensor:
    """All 2^16 upper halves with each of LOW_HALVES, as float32: NaN, infinities and denormals included."""
    highs = torch.arange(2**16, dtype=torch.int64).view(-1, 1)
    bits = (highs << 16) + torch.tensor(LOW_HALVES)
    return bits.flatten().to(torch.int32).view(torch.float32)


def planes_of(master: Tensor, threads: int | None = None) -> tuple[Tensor, Tensor]:
    hi, lo = torch.empty_like(master, dtype=torch.bfloat16), torch.empty_like(master, dtype=torch.int16)
    split(master, hi, lo, threads)
    return hi, lo


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    integer = {2: torch.int16, 4: torch.int32}[a.element_size()]
    assert torch.equal(a.view(integer), b.view(integer))


def test_join_inverts_split_for_every_high_half():
    master = every_high_half()
    hi, lo = planes_of(master)
    joined = torch.empty_like(master)
    join(hi, lo, joined)
    assert_same_bits(joined, master)


def test_references_equal_the_loops():
    master = every_high_half()
    hi, lo = planes_of(master)
    hi_reference, lo_reference, joined = torch.empty_like(hi), torch.empty_like(lo), torch.empty_like(master)
    split_reference(master, hi_reference, lo_reference)
    join_reference(hi_reference, lo_reference, joined)
    assert_same_bits(hi_reference, hi)
    assert_same_bits(lo_reference, lo)
    assert_same_bits(joined, master)


def test_hi_is_the_bf16_rounding_except_on_ties():
    master = every_high_half()
    master = master[master.isfinite()]
    hi, _ = planes_of(master)
    rounded = master.to(torch.bfloat16)
    ties = master.view(torch.int32) & 0xFFFF == 0x8000
    assert_same_bits(hi[~ties], rounded[~ties])
    away = hi[ties].view(torch.int16).to(torch.int32) - rounded[ties].view(torch.int16).to(torch.int32)
    assert set(away.tolist()) == {0, 1}  # sign and magnitude: one up is one step away from zero


def test_values_beyond_the_largest_bf16_round_to_infinity_and_come_back():
    master = torch.tensor([3.3895e38, 3.4e38, -3.4e38])
    hi, lo = planes_of(master)
    assert hi.isinf().tolist() == [False, True, True]
    joined = torch.empty_like(master)
    join(hi, lo, joined)
    assert torch.equal(joined, master)


def test_bf16_weights_leave_the_low_plane_empty():
    weights = torch.randn(1000).bfloat16()
    hi, lo = planes_of(weights.float())
    assert_same_bits(hi, weights)
    assert not lo.any()


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [0, 1, 15, 17, 100_003])
def test_any_size_on_any_number_of_threads(size: int, threads: int):
    master = torch.randn(size)
    hi, lo = planes_of(master, threads)
    expected = torch.empty_like(hi)
    split_reference(master, expected, torch.empty_like(lo))
    joined = torch.empty_like(master)
    join(hi, lo, joined, threads)
    assert_same_bits(hi, expected)
    assert_same_bits(joined, master)


def test_a_view_into_a_larger_buffer_is_written_in_place():
    hi, lo = torch.zeros(20, dtype=torch.bfloat16), torch.zeros(20, dtype=torch.int16)
    split(torch.full((5,), 1.001), hi[3:8], lo[3:8])
    assert (hi != 0).nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


def test_wrong_arguments_are_refused():
    master, hi, lo = torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int16)
    with pytest.raises(TypeError, match="hi must be bfloat16"):
        split(master, hi.half(), lo)
    with pytest.raises(TypeError, match="master must be float32"):
        split(master.double(), hi, lo)
    with pytest.raises(ValueError, match="lo has 3 elements; expected 4"):
        split(master, hi, lo[:3])
    with pytest.raises(TypeError):  # a strided view: a copy would lose the writes
        split(torch.zeros(2), hi[::2], lo[:2])
    with pytest.raises(ValueError, match="num_threads is -1"):
        join(hi, lo, master, threads=-1)


@pytest.mark.slow
def test_join_inverts_split_for_all_bit_patterns():
    piece = 2**26
    hi, lo = torch.empty(piece, dtype=torch.bfloat16), torch.empty(piece, dtype=torch.int16)
    joined = torch.empty(piece)
    for start in range(-(2**31), 2**31, piece):
        master = torch.arange(start, start + piece, dtype=torch.int32).view(torch.float32)
        split(master, hi, lo)
        join(hi, lo, joined)
        assert_same_bits(joined, master)


@pytest.mark.gpu
def test_references_on_a_gpu_equal_the_loops():
    master = every_high_half()
    hi, lo = planes_of(master)
    on_gpu = master.cuda()
    hi_gpu, lo_gpu = torch.empty_like(hi, device="cuda"), torch.empty_like(lo, device="cuda")
    split_reference(on_gpu, hi_gpu, lo_gpu)
    assert_same_bits(hi_gpu.cpu(), hi)
    assert_same_bits(lo_gpu.cpu(), lo)
    on_gpu.zero_()
    join_reference(hi_gpu, lo_gpu, on_gpu)
    assert_same_bits(on_gpu.cpu(), master)
