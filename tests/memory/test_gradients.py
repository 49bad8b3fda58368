"""Gradients are summed exactly, leave with their sum of squares, and wait for a free slot."""

from collections.abc import Callable

import pytest
import torch

from slideformer.lanes.lanes import inline_lanes
from slideformer.layout import FlatLayout
from slideformer.memory.gradients import Accumulator, GradientRing
from slideformer.memory.host import HostAllocator

SMALL, LARGE = FlatLayout({"a": (3,), "b": (2, 5)}), FlatLayout({"a": (130,), "b": (7,)})


def gradients(layout: FlatLayout, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(field.shape, generator=generator).to(dtype) for field in layout.fields.values()]


def flat_of(layout: FlatLayout, values: list[torch.Tensor]) -> torch.Tensor:
    flat = torch.zeros(layout.numel)
    for view, value in zip(layout.views(flat).values(), values, strict=True):
        view.copy_(value)
    return flat


def new_ring(
    accumulate: bool,
    dtype: torch.dtype = torch.float32,
    slots: int = 2,
    wait_until: Callable[[Callable[[], bool]], None] | None = None,
) -> GradientRing:
    def no_wait(condition: Callable[[], bool]) -> None:
        assert condition()

    lanes, allocator = inline_lanes(torch.device("cpu")), HostAllocator(pin=False)
    return GradientRing(
        lanes, allocator, LARGE.numel, slots, dtype, accumulate, units=4, wait_until=wait_until or no_wait
    )


# ---- accumulation


def test_the_first_gradients_replace_what_was_there_padding_included():
    flat = torch.full((SMALL.numel,), float("nan"))
    values = gradients(SMALL, 0)
    Accumulator(SMALL, flat).add(values)
    assert torch.equal(flat, flat_of(SMALL, values))


def test_later_gradients_are_added():
    flat, sets = torch.full((SMALL.numel,), float("nan")), [gradients(SMALL, seed) for seed in range(3)]
    accumulator = Accumulator(SMALL, flat)
    for values in sets:
        accumulator.add(values)
    assert torch.equal(flat, flat_of(SMALL, sets[0]) + flat_of(SMALL, sets[1]) + flat_of(SMALL, sets[2]))


def test_no_gradient_is_zero_whenever_it_comes():
    flat = torch.full((SMALL.numel,), float("nan"))
    accumulator = Accumulator(SMALL, flat)
    first, second = gradients(SMALL, 0), gradients(SMALL, 1)
    accumulator.add([None, first[1]])
    accumulator.add([second[0], None])
    assert torch.equal(flat, flat_of(SMALL, [second[0], first[1]]))


def test_bf16_gradients_are_summed_in_fp32():
    flat = torch.zeros(SMALL.numel)
    accumulator = Accumulator(SMALL, flat)
    one, tiny = torch.tensor(1.0).bfloat16(), torch.tensor(2.0**-12).bfloat16()
    for value in (one, *[tiny] * 8):
        accumulator.add([value.expand(3), value.expand(2, 5)])
    assert float(flat[0]) == 1 + 8 * 2.0**-12  # in bf16 it would still be 1


# ---- on the way out


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_lands_with_its_sum_of_squares(accumulate: bool, dtype: torch.dtype):
    ring = new_ring(accumulate, dtype)
    for unit, layout in enumerate((LARGE, SMALL, LARGE)):
        values = gradients(layout, unit, dtype)
        accumulator = ring.open(layout)
        accumulator.add(values)
        landed = ring.flush(unit, accumulator)
        assert landed.landed.done() and landed.flat.dtype == dtype
        expected = flat_of(layout, values).to(dtype)
        assert torch.equal(landed.flat, expected)  # zeros in the padding, though a larger layer lay there before
        assert float(landed.sum_of_squares) == pytest.approx(float(expected.double().square().sum()), rel=1e-5)
        landed.release()


def test_sums_of_squares_of_units_do_not_share_memory():
    ring = new_ring(accumulate=False)
    landed = []
    for unit in range(2):
        accumulator = ring.open(SMALL)
        accumulator.add([torch.full((3,), unit + 1.0), torch.zeros(2, 5)])
        landed.append(ring.flush(unit, accumulator))
    assert [float(gradient.sum_of_squares) for gradient in landed] == [3, 12]
    assert landed[0].flat.data_ptr() != landed[1].flat.data_ptr()


def test_a_flush_waits_for_a_free_slot():
    waits: list[bool] = []

    def wait_until(condition: Callable[[], bool]) -> None:
        waits.append(condition())
        if not condition():
            landed[0].release()
        assert condition()

    ring, landed = new_ring(accumulate=False, slots=1, wait_until=wait_until), []
    for unit in range(2):
        accumulator = ring.open(SMALL)
        accumulator.add(gradients(SMALL, unit))
        landed.append(ring.flush(unit, accumulator))
    assert waits == [True, False]
    assert torch.equal(landed[1].flat, flat_of(SMALL, gradients(SMALL, 1)))


@pytest.mark.parametrize("numel", [0, 1, 255, 256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_of_any_size_leaves_piece_by_piece(numel: int, dtype: torch.dtype):
    ring, gradient = new_ring(accumulate=True, dtype=dtype), torch.randn(numel)
    destination = torch.full((numel,), float("nan"), dtype=dtype)
    for _ in range(2):  # the sum starts at zero each time
        landed = ring.flush_into(3, gradient, destination)
    assert torch.equal(destination, gradient.to(dtype))
    assert float(landed.sum_of_squares) == pytest.approx(float(gradient.to(dtype).double().square().sum()), rel=1e-5)


def test_bytes_needed_are_what_is_allocated():
    allocator = HostAllocator(pin=False)
    GradientRing(
        inline_lanes(torch.device("cpu")), allocator, 256, 3, torch.bfloat16, True, units=4, wait_until=lambda _: None
    )
    assert allocator.allocated_bytes["gradients"] == GradientRing.host_bytes_needed(256, 3, torch.bfloat16)
    assert GradientRing.device_bytes_needed(256, torch.bfloat16, accumulate=True) == 256 * (2 * 2 + 4)
    assert GradientRing.device_bytes_needed(256, torch.float32, accumulate=False) == 256 * 2 * 4
