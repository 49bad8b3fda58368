"""Padding, shifting, splitting, and an order that depends on nothing but seed, epoch and step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slideformer.data.batches import Batch, BatchStream, collate
from slideformer.data.examples import Example
from slideformer.errors import DataError

PAD = 9


def example(index: int, length: int) -> Example:
    """Tokens index*100, index*100+1, ...; the first half is a prompt."""
    input_ids = torch.arange(length, dtype=torch.int32) + index * 100
    labels = torch.where(torch.arange(length) < length // 2, -100, input_ids).to(torch.int32)
    return Example(index, input_ids, labels)


def examples(count: int) -> list[Example]:
    return [example(i, 2 + i % 3) for i in range(count)]


def test_rows_are_padded_right_and_targets_shifted():
    batch = collate([example(1, 4), example(2, 2)], PAD)
    assert batch.input_ids.tolist() == [[100, 101, 102, 103], [200, 201, PAD, PAD]]
    assert batch.targets.tolist() == [[-100, 102, 103, -100], [201, -100, -100, -100]]
    assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
    assert (batch.tokens, batch.trained_tokens, batch.lengths, batch.indices) == (6, 3, (4, 2), (1, 2))


def test_a_pad_id_that_is_also_a_token_stays_trained_where_it_is_one():
    row = torch.tensor([PAD, PAD], dtype=torch.int32)
    batch = collate([Example(0, row, row), example(1, 4)], PAD)
    assert batch.targets[0].tolist() == [PAD, -100, -100, -100]


@given(st.lists(st.integers(2, 9), min_size=1, max_size=12), st.integers(1, 13))
@settings(max_examples=60, deadline=None)
def test_micro_batches_hold_the_same_rows_without_common_padding(lengths: list[int], micro_batch_size: int):
    batch = collate([example(i, length) for i, length in enumerate(lengths)], PAD)
    parts = batch.split(micro_batch_size)
    assert sum(part.tokens for part in parts) == batch.tokens
    assert sum(part.trained_tokens for part in parts) == batch.trained_tokens
    assert [index for part in parts for index in part.indices] == list(range(len(lengths)))
    for part in parts:
        assert len(part.lengths) <= micro_batch_size and part.input_ids.shape[1] == max(part.lengths)
        assert part.input_ids.is_contiguous() and part.targets.is_contiguous()
        for row, index in enumerate(part.indices):
            width = part.input_ids.shape[1]
            assert part.input_ids[row].equal(batch.input_ids[index, :width])
            assert part.targets[row].equal(batch.targets[index, :width])


def test_an_epoch_holds_every_example_once_and_ends_with_a_smaller_batch():
    stream = BatchStream(examples(10), 4, shuffle=True, seed=3)
    assert stream.steps_per_epoch == 3
    for epoch in range(3):
        seen = [stream.at(epoch * 3 + step).indices for step in range(3)]
        assert [len(indices) for indices in seen] == [4, 4, 2]
        assert sorted(sum(seen, ())) == list(range(10))


def test_without_shuffle_the_order_is_given_and_wraps():
    stream = BatchStream(examples(5), 2, shuffle=False, seed=3)
    assert [stream.at(step).indices for step in range(4)] == [(0, 1), (2, 3), (4,), (0, 1)]


def test_order_depends_on_seed_and_epoch_only():
    def epoch(seed: int, number: int) -> tuple[int, ...]:
        return BatchStream(examples(20), 20, shuffle=True, seed=seed).at(number).indices

    assert epoch(1, 0) == epoch(1, 0)
    assert len({epoch(1, 0), epoch(1, 1), epoch(2, 0), epoch(2**32 - 1, 0), epoch(0, 1)}) == 5


def test_any_step_can_be_asked_for_first():
    walked = BatchStream(examples(11), 3, shuffle=True, seed=5)
    batches = [walked.at(step) for step in range(12)]
    for step in (11, 4, 0, 7):
        batch = BatchStream(examples(11), 3, shuffle=True, seed=5).at(step)
        assert batch.indices == batches[step].indices and batch.input_ids.equal(batches[step].input_ids)


def test_order_is_the_same_in_every_version():
    """A resumed run must go on with the order it began with, so this order may never change."""
    assert BatchStream(examples(8), 8, shuffle=True, seed=42).at(1).indices == (0, 4, 6, 1, 2, 7, 3, 5)


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="nothing to train on"):
        BatchStream([], 2, shuffle=False, seed=0)


def test_a_batch_from_tensors_is_the_batch_of_the_records():
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    labels = torch.tensor([[-100, 6, 7, 8], [9, 10, -100, -100]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = Batch.from_tensors(ids, labels, mask)
    assert batch.input_ids.tolist() == ids.tolist() and batch.lengths == (4, 2)
    assert batch.targets.tolist() == [[6, 7, 8, -100], [10, -100, -100, -100]]
    lists = Batch.from_tensors([[5, 6, 7, 8], [9, 10]], [[-100, 6, 7, 8], [9, 10]])
    assert lists.targets.tolist() == batch.targets.tolist() and lists.lengths == batch.lengths
    assert Batch.from_tensors(ids[:1]).targets.tolist() == [[6, 7, 8, -100]]


@pytest.mark.parametrize(
    ("labels", "mask", "complaint"),
    [
        ([[1, 2]], None, "shape of input_ids"),
        ([[1, 2, 3]], torch.tensor([[0, 1, 1]]), "on the right"),
        ([[1, -100, -100]], None, "no token is trained"),
        ([[1, 2, 3]], torch.tensor([[1, 1, 1], [1, 1, 1]]), "shape of input_ids"),
    ],
)
def test_what_is_no_batch_is_refused(labels: list[list[int]], mask: torch.Tensor | None, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        Batch.from_tensors([[1, 2, 3]], labels, mask)
