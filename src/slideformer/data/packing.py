"""Examples -> rows: one an example, or as many examples a row as fit, by best fit."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Packed together at least: a chunk's last row is half empty on average, so many rows lose little.
CHUNK_EXAMPLES, CHUNK_ROWS = 4096, 256


@dataclass(frozen=True)
class Rows:
    """Which examples stand in each row of an epoch.

    Attributes:
        examples: [n] int64, positions of examples, row behind row.
        bounds: [rows + 1] int64; row r is `examples[bounds[r] : bounds[r + 1]]`.
    """

    examples: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.examples[self.bounds[row] : self.bounds[row + 1]]

    def filled_share(self, lengths: np.ndarray, row_length: int) -> float:
        """Tokens over places."""
        return float(lengths[self.examples].sum()) / (len(self) * row_length)


def one_a_row(order: np.ndarray) -> Rows:
    """Every example in a row of its own."""
    return Rows(order, np.arange(len(order) + 1))


def pack(order: np.ndarray, lengths: np.ndarray, row_length: int, generator: np.random.Generator | None) -> Rows:
    """The examples of `order` in rows of at most `row_length` tokens, each example whole.

    Packed are chunks of `order`, not all of it: which examples meet in a row then differs between epochs, and an order
    that is not shuffled stays one. Best fit makes the first rows those of long examples, so rows are put into the order
    of their first example, or shuffled.

    Args:
        order: [n] positions of examples.
        lengths: tokens of every example, by position.
        generator: shuffles the rows.
    """
    in_tokens = int(lengths[order].sum()) // (CHUNK_ROWS * row_length)
    chunks = np.array_split(order, max(1, min(len(order) // CHUNK_EXAMPLES, in_tokens)))
    rows = [chunk[row] for chunk in chunks for row in best_fit(lengths[chunk].tolist(), row_length)]
    if generator is not None:
        rows = [rows[i] for i in generator.permutation(len(rows))]
    return Rows(np.concatenate(rows), np.concatenate([[0], np.cumsum([len(row) for row in rows])]))


def extreme_rows(rows: Rows, lengths: np.ndarray, row_length: int) -> list[tuple[int, ...]]:
    """Document lengths of the two rows that can need the most memory: of the longest examples, and of the most."""
    longest = min(int(lengths[rows.examples].max()), row_length)
    crowded = rows[int(np.diff(rows.bounds).argmax())]
    return [(longest,) * (row_length // longest), tuple(lengths[crowded].tolist())]


def best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Best-fit decreasing: the longest item left goes where it leaves the least room, or into a new row.

    Returns:
        The numbers of the items of each row, ascending; rows by their first item.
    """
    rows: list[list[int]] = []
    rows_with: dict[int, list[int]] = {}  # room -> rows that have it
    rooms: list[int] = []  # its keys, ascending
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        length, place = lengths[item], bisect_left(rooms, lengths[item])
        if place == len(rooms):
            row, room = len(rows), row_length
            rows.append([])
        else:
            room = rooms[place]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], rooms[place]
        rows[row].append(item)
        if room - length not in rows_with:
            rows_with[room - length] = []
            insort(rooms, room - length)
        rows_with[room - length].append(row)
    return sorted(sorted(row) for row in rows)
