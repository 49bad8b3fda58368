"""Best fit: nothing lost, nothing too long, rows well filled, and the given order kept where it is wanted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideformer.data.packing import CHUNK_EXAMPLES, CHUNK_ROWS, Rows, best_fit, extreme_rows, one_a_row, pack


def lists(rows: Rows) -> list[list[int]]:
    return [rows[number].tolist() for number in range(len(rows))]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_every_item_is_in_one_row_and_no_row_is_too_long(lengths: list[int]):
    rows = best_fit(lengths, 40)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    used = sorted(sum(lengths[item] for item in row) for row in rows)
    assert used[-1] <= 40
    assert len(used) == 1 or used[0] + used[1] > 40  # no two rows would fit into one


def test_an_item_goes_where_it_leaves_the_least_room():
    assert best_fit([12, 10, 9, 1], 20) == [[0], [1, 2, 3]]  # the first row that has room would be the 12's
    assert best_fit([1, 9, 10, 12], 20) == [[0, 1, 2], [3]]
    assert best_fit([5, 5, 5], 10) == [[0, 1], [2]]


def test_rows_are_nearly_full_on_realistic_lengths():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.9, 20_000), 16, 2048).astype(int)
    rows = pack(np.arange(len(lengths)), lengths, 2048, None)
    assert rows.filled_share(lengths, 2048) > 0.99
    assert rows.filled_share(lengths, 2048) == pytest.approx(lengths.sum() / (len(rows) * 2048))


def test_packing_stays_within_chunks_of_the_order():
    lengths = np.full(2 * CHUNK_EXAMPLES, 3)
    order = np.arange(len(lengths))[::-1]
    rows = pack(order, lengths, 10, None)
    for row in lists(rows):
        assert len({int(order[item]) // CHUNK_EXAMPLES for item in row}) == 1
    assert sorted(rows.examples.tolist()) == sorted(order.tolist())


def test_long_rows_of_short_examples_are_packed_from_larger_chunks():
    lengths = np.random.default_rng(0).integers(8, 40, 20 * CHUNK_EXAMPLES)
    row_length = int(lengths.sum()) // CHUNK_ROWS
    assert pack(np.arange(len(lengths)), lengths, row_length, None).filled_share(lengths, row_length) > 0.99


def test_unshuffled_rows_begin_in_the_given_order():
    rows = lists(pack(np.array([4, 2, 0, 1, 3]), np.array([5, 9, 2, 1, 8]), 10, None))
    assert rows == [[4, 2], [0], [1, 3]]


def test_shuffling_moves_rows_and_nothing_else():
    lengths = np.random.default_rng(1).integers(2, 30, 200)
    plain = lists(pack(np.arange(200), lengths, 40, None))
    shuffled = lists(pack(np.arange(200), lengths, 40, np.random.default_rng(2)))
    assert plain != shuffled and sorted(plain) == sorted(shuffled)


def test_the_extreme_rows_are_of_the_longest_and_of_the_most_examples():
    lengths = np.array([7, 3, 3, 2, 2])
    rows = Rows(np.array([0, 1, 2, 3, 4]), np.array([0, 1, 3, 5]))
    assert extreme_rows(rows, lengths, 16) == [(7, 7), (3, 3)]


def test_unpacked_rows_hold_one_example():
    assert lists(one_a_row(np.array([3, 1, 2]))) == [[3], [1], [2]]
