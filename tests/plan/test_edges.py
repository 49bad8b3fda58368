"""Edges are found by halving: of what is made to be looked at, little is made."""

from slideformer.plan.edges import Made, first, last


def test_first_and_last_find_the_edge():
    for edge in range(6):
        assert first(range(5), lambda x, e=edge: x >= e) == (edge if edge < 5 else None)
        assert last(range(5), lambda x, e=edge: x < e) == (edge - 1 if edge else None)


def test_few_are_made():
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return 10 * number

    assert first(Made(make, range(1000)), lambda value: value >= 4320) == 4320
    assert len(made) < 15
    assert last(Made(make, range(1000)), lambda value: value <= 4320) == 4320
    assert last(Made(make, []), lambda value: True) is None
