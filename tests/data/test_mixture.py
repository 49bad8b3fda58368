"""Weighted sources: how often each example is seen, and that the order needs no state."""

from collections import Counter

import pytest

from slideformer.data.mixture import Mixture


def seen(mixture: Mixture, epochs: int, shuffle: bool = True, seed: int = 3) -> Counter[int]:
    return Counter(int(i) for e in range(epochs) for i in mixture.order(e, shuffle=shuffle, seed=seed))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_weight_is_how_often_an_example_is_seen(shuffle: bool):
    mixture = Mixture([4, 10, 6], [1.0, 0.5, 2.0])
    assert mixture.draws == [4, 5, 12]
    counts = seen(mixture, 4, shuffle)
    assert {counts[i] for i in range(4)} == {4}
    assert {counts[i] for i in range(4, 14)} == {2}
    assert {counts[i] for i in range(14, 20)} == {8}


def test_a_fraction_goes_on_where_the_last_epoch_ended():
    mixture = Mixture([10], [0.3])
    assert sorted(seen(mixture, 10).values()) == [3] * 10
    first, second = (set(mixture.order(e, shuffle=True, seed=1).tolist()) for e in (0, 1))
    assert len(first | second) == 6
    assert mixture.order(3, shuffle=False, seed=1).tolist() == [9, 0, 1]


def test_sources_are_mixed_when_shuffled_and_in_turn_when_not():
    mixture = Mixture([50, 50], [1.0, 1.0])
    assert mixture.order(0, shuffle=False, seed=0).tolist() == list(range(100))
    assert 15 < sum(i < 50 for i in mixture.order(0, shuffle=True, seed=0)[:50]) < 35


def test_an_order_depends_on_seed_and_epoch_only():
    mixture = Mixture([7, 9], [0.5, 1.5])
    orders = [tuple(mixture.order(e, shuffle=True, seed=s)) for e, s in [(0, 1), (1, 1), (0, 2), (0, 1)]]
    assert orders[0] == orders[3] and len(set(orders)) == 3


def test_the_order_is_the_same_in_every_version():
    """A resumed run must go on with the order it began with, so this order may never change."""
    assert Mixture([4, 5], [0.5, 1.0]).order(1, shuffle=True, seed=42).tolist() == [1, 6, 8, 0, 4, 5, 7]


def test_a_source_is_never_empty():
    assert Mixture([3], [0.01]).draws == [1]
