"""A curve in one line of text."""

import math

from slideformer.listeners.sparkline import Curve


def curve(values: list[float], most: int = 512) -> Curve:
    line = Curve(most)
    for value in values:
        line.add(value)
    return line


def test_the_highest_is_the_tallest():
    assert curve([0, 7, 3.5, 1]).draw(10) == "▁█▅▂"


def test_more_values_than_columns_are_averaged():
    assert curve([float(i) for i in range(80)]).draw(8) == "▁▂▃▄▅▆▇█"


def test_a_long_run_keeps_its_shape_and_no_more_points():
    long = curve([float(i) for i in range(10_000)], most=16)
    assert long.draw(8) == "▁▂▃▄▅▆▇█" and len(long._means) < 16


def test_nothing_level_and_not_finite():
    assert curve([]).draw(10) == ""
    assert curve([2.0, 2.0]).draw(10) == "▁▁"
    assert curve([1.0, math.nan, math.inf, 2.0]).draw(10) == "▁█"
