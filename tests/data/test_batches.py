"""Padding, shifting, splitting, and an order that depends on nothing but seed, epoch and step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slideformer.data.batches import Batch, BatchStream, collate, collate_packed
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


# ---- packed


def packed_stream(count: int = 40, batch_size: int = 3, shuffle: bool = True, row_length: int = 11) -> BatchStream:
    return BatchStream(
        [example(i, 2 + i % 5) for i in range(count)], batch_size, shuffle=shuffle, seed=7, row_length=row_length
    )


def rows_of(batch: Batch) -> list[list[list[int]]]:
    """The tokens of each document of each row."""
    assert batch.documents is not None
    rows = zip(batch.input_ids, batch.lengths, batch.documents, strict=True)
    return [[part.tolist() for part in ids[:length].split(documents)] for ids, length, documents in rows]


def test_examples_stand_behind_each_other_and_predict_nothing_across():
    batch = collate_packed([[example(1, 4), example(2, 2)], [example(3, 3)]], PAD)
    assert batch.input_ids.tolist() == [[100, 101, 102, 103, 200, 201], [300, 301, 302, PAD, PAD, PAD]]
    assert batch.targets.tolist() == [[-100, 102, 103, -100, 201, -100], [301, 302, -100, -100, -100, -100]]
    assert (batch.tokens, batch.trained_tokens, batch.lengths, batch.indices) == (9, 5, (6, 3), (1, 2, 3))
    assert batch.documents == ((4, 2), (3,))


def test_places_restart_in_each_document_and_padding_is_apart():
    batch = collate_packed([[example(1, 4), example(2, 2)], [example(3, 3)]], PAD)
    positions, bounds = batch.places()
    assert positions.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert batch.spans == (4, 2, 3, 3) and bounds.tolist() == [0, 4, 6, 9, 12]
    assert collate([example(1, 4), example(2, 2)], PAD).spans == (4, 2, 2)


def test_padding_is_cut_into_pieces_no_longer_than_a_document():
    batch = collate_packed([[example(1, 4), example(2, 4), example(3, 2)], [example(4, 3)]], PAD)
    assert batch.spans == (4, 4, 2, 3, 4, 3)
    assert batch.places()[0][1].tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]


def test_micro_batches_of_packed_rows():
    rows = [[example(1, 4), example(2, 2)], [example(3, 3)], [example(4, 2), example(5, 2)]]
    parts = collate_packed(rows, PAD).split(2)
    assert [part.indices for part in parts] == [(1, 2, 3), (4, 5)]
    assert [part.documents for part in parts] == [((4, 2), (3,)), ((2, 2),)]
    assert parts[1].input_ids.tolist() == [[400, 401, 500, 501]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_packed_epoch_holds_every_example_once(shuffle: bool):
    stream, step = packed_stream(shuffle=shuffle), 0
    for epoch in range(3):
        seen = []
        for _ in range(stream.steps_in(epoch + 1) - stream.steps_in(epoch) if epoch else stream.steps_in(1)):
            batch = stream.at(step)
            assert len(batch.lengths) <= 3 and max(batch.lengths) <= 11
            for documents in rows_of(batch):
                assert all(tokens[0] % 100 == 0 and len(tokens) == 2 + tokens[0] // 100 % 5 for tokens in documents)
            seen += batch.indices
            step += 1
        assert sorted(seen) == list(range(40))


def test_any_packed_step_can_be_asked_for_first():
    walked = packed_stream()
    batches = [walked.at(step) for step in range(16)]
    for step in (15, 3, 0, 9):
        batch = packed_stream().at(step)
        assert batch.indices == batches[step].indices and batch.input_ids.equal(batches[step].input_ids)


def test_examples_meet_others_in_the_next_epoch():
    stream = packed_stream(count=60, batch_size=100)
    assert stream.steps_per_epoch == 1
    first, second = ({frozenset(t[0] for t in row) for row in rows_of(stream.at(epoch))} for epoch in range(2))
    assert first != second


def test_steps_are_counted_over_epochs_of_different_lengths():
    stream = packed_stream(count=11, batch_size=1)
    lengths = [len(stream.rows(epoch)) for epoch in range(6)]
    assert [stream.steps_in(epochs) for epochs in (1, 2, 6)] == [lengths[0], sum(lengths[:2]), sum(lengths)]
    assert stream.steps_in(1.5) == lengths[0] + -(-lengths[1] // 2)
    assert stream.steps_in(0.001) == 1


def test_steps_of_unpacked_epochs():
    stream = BatchStream(examples(10), 4, shuffle=True, seed=3)
    assert [stream.steps_in(epochs) for epochs in (1, 2, 0.5, 1.1)] == [3, 6, 2, 4]


def test_packed_order_is_the_same_in_every_version():
    """As above: a resumed run goes on with the rows it began with."""
    assert packed_stream(count=12).at(1).indices == (4, 8, 10, 0, 1, 11)


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
