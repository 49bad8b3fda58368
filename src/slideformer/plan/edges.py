"""Where, among values in order, something begins or ceases to hold; found by halving, so few of them are made."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T", covariant=True)
V = TypeVar("V")


class Ordered(Protocol[T]):
    """A list, or what makes its entries when they are looked at."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T: ...


class Made(Ordered[V]):
    """`make(number)` for each number, made when it is looked at."""

    def __init__(self, make: Callable[[int], V], numbers: Sequence[int]):
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int, /) -> V:
        return self._make(self._numbers[index])


def first(ascending: Ordered[V], holds: Callable[[V], bool]) -> V | None:
    """The first for which it holds, if it holds for all behind that; None if for none."""
    if not len(ascending) or not holds(ascending[-1]):
        return None
    low, high = 0, len(ascending) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(ascending[middle]) else (middle + 1, high)
    return ascending[low]


def last(ascending: Ordered[V], holds: Callable[[V], bool]) -> V | None:
    """The last for which it holds, if it holds for all before that; None if for none."""
    if not len(ascending) or not holds(ascending[0]):
        return None
    if holds(ascending[-1]):
        return ascending[-1]
    low, high = 0, len(ascending) - 1
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(ascending[middle]) else (low, middle)
    return ascending[low]
