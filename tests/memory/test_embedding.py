"""Gathered rows and the two-part update equal a dense table that is trained as a whole."""

import pytest
import torch
from torch import Tensor

from slideformer.lanes.lanes import inline_lanes
from slideformer.layout import FlatLayout
from slideformer.memory.embedding import EmbeddingTable
from slideformer.memory.gradients import GradientRing
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.optim.adamw import AdamWStep

VOCABULARY, WIDTH = 19, 6  # 114 elements: padded to 128
LAYOUT = FlatLayout({"weight": (VOCABULARY, WIDTH)})
LANES = inline_lanes(torch.device("cpu"))
STEPS = [torch.tensor([[3, 3, 0], [18, 7, 3]]), torch.tensor([[1, 2, 4]]), torch.tensor([[18, 18, 18]])]


def hyper(step: int) -> AdamWStep:
    return AdamWStep(learning_rate=0.1, beta1=0.9, beta2=0.99, epsilon=1e-6, weight_decay=0.1, step=step)


def new_table(dtype: torch.dtype, padding_row: int | None = None) -> EmbeddingTable:
    allocator = HostAllocator(pin=False)
    state = LayerState("embedding", LAYOUT, allocator, pin_lo=False, threads=1)
    state.load("weight", torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0)))
    table = EmbeddingTable(LANES, allocator, state, max_rows=6, dtype=dtype, padding_row=padding_row)
    needed = EmbeddingTable.host_bytes_needed(VOCABULARY, WIDTH, 6, dtype)
    assert allocator.allocated_bytes["embedding rows"] == needed
    return table


def new_ring(dtype: torch.dtype) -> GradientRing:
    return GradientRing(LANES, HostAllocator(pin=False), 10, 0, dtype, False, units=2, wait_until=lambda _: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathering_is_looking_up(dtype: torch.dtype):
    table = new_table(dtype)
    rows, row_of = table.gather(STEPS[0])
    assert table.row_ids.tolist() == [0, 3, 7, 18] and rows.shape == (4, WIDTH) and rows.dtype == dtype
    assert torch.equal(rows[row_of], table.state.read("weight", dtype)[STEPS[0]])


def gradient_of(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of a step through the embedding (zero but for its rows) and through the head."""
    generator = torch.Generator().manual_seed(step)
    through_rows = torch.zeros(VOCABULARY, WIDTH)
    ids = STEPS[step].unique()
    through_rows[ids] = torch.randn(ids.numel(), WIDTH, generator=generator)
    return through_rows, torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_and_rest_equal_one_dense_update(tied: bool, dtype: torch.dtype):
    table, dense, ring = new_table(dtype), new_table(dtype).state, new_ring(dtype)
    for k, ids in enumerate(STEPS):
        through_rows, through_head = gradient_of(k, dtype)
        table.gather(ids)
        head = through_head.clone() if tied else None
        gradient = table.open_gradient(table.row_ids, head)
        gradient.add_(through_rows[table.row_ids])
        flat_head = torch.zeros(LAYOUT.numel, dtype=dtype)
        if head is not None:
            assert not head[table.row_ids].any()  # taken out, so that its norm is not counted twice
            flat_head[: head.numel()] = head.view(-1)
        table.update_rest(flat_head if tied else None, hyper(k + 1))
        landed = table.flush_rows(ring, 1, gradient)
        table.update_rows(hyper(k + 1))

        whole = through_rows + through_head if tied else through_rows
        flat = torch.zeros(LAYOUT.numel, dtype=dtype)
        flat[: whole.numel()] = whole.to(dtype).view(-1)
        dense.adam.step(flat, hyper(k + 1))
        squares = whole[table.row_ids].to(dtype).double().square().sum()
        assert float(landed.sum_of_squares) == pytest.approx(float(squares), rel=1e-5)
    for name in ("hi", "lo", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(table.state, name), getattr(dense, name)), name


def test_rest_may_come_before_or_after_rows():
    one, other = new_table(torch.float32), new_table(torch.float32)
    for table, order in ((one, "rest rows"), (other, "rows rest")):
        table.gather(STEPS[0])
        table.flush_rows(new_ring(torch.float32), 1, torch.ones(4, WIDTH))
        for part in order.split():
            table.update_rest(None, hyper(1)) if part == "rest" else table.update_rows(hyper(1))
    assert torch.equal(one.state.hi, other.state.hi) and torch.equal(one.state.lo, other.state.lo)


@pytest.mark.parametrize(("row", "index"), [(0, 0), (7, 2), (18, 3), (5, None), (None, None)])
def test_the_padding_row_is_found_among_the_gathered(row: int | None, index: int | None):
    table = new_table(torch.float32, padding_row=row)
    table.gather(STEPS[0])
    assert table.padding_index == index


def test_rows_are_at_most_the_vocabulary():
    assert EmbeddingTable.host_bytes_needed(VOCABULARY, WIDTH, 10**6, torch.bfloat16) == 2 * VOCABULARY * WIDTH * 2
