"""Axes hold their values between round ticks; numbers are short."""

import math

import pytest

from slideformer.report.axes import format_number, step_axis, step_texts, tick_texts, value_axis

DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    "values", [[1.12, 2.3], [0.0], [5.0], [-3.0, 4.0], [1e-5, 2e-5], [1e-320], [1e299, -1e299], [7.0, 7.0 + 1e-13]]
)
@pytest.mark.parametrize("from_zero", [False, True])
def test_the_axis_holds_every_value(values: list[float], from_zero: bool):
    axis = value_axis(values, from_zero)
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
    assert (axis.ticks[0], axis.ticks[-1]) == (axis.low, axis.high) and 2 <= len(axis.ticks) <= 8
    assert not from_zero or axis.low <= 0 <= axis.high


def test_ticks_are_round_and_equally_long():
    assert tick_texts(value_axis([1.12, 2.3])) == ["1.0", "1.5", "2.0", "2.5"]
    assert tick_texts(value_axis([0, 15_300], from_zero=True)) == ["0", "5,000", "10,000", "15,000", "20,000"]
    assert tick_texts(value_axis([0, 2e-5])) == ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]


def test_a_few_huge_values_make_the_axis_logarithmic_where_that_is_allowed():
    values = [0.5, 0.6, 0.7, 900.0]
    axis = value_axis(values, may_be_log=True)
    assert axis.is_log and axis.ticks == [0.1, 1, 10, 100, 1000]
    assert not value_axis(values).is_log
    assert not value_axis([0.0, *values], may_be_log=True).is_log
    assert axis.share(1.0) == pytest.approx(0.25)


def test_a_logarithmic_axis_ends_close_to_its_values():
    axis = value_axis([0.5, 0.6, 0.7, 6.6], may_be_log=True)
    assert (axis.low, axis.high) == pytest.approx((0.5, 10)) and axis.ticks == pytest.approx([0.5, 1, 2, 5, 10])


@pytest.mark.parametrize(
    ("first", "last", "texts"),
    [
        (0, 400, ["0", "100", "200", "300", "400"]),
        (1, 3, ["1", "2", "3"]),
        (7, 7, ["7"]),
        (0, 100_000, ["0", "20k", "40k", "60k", "80k", "100k"]),
    ],
)
def test_steps_are_whole(first: int, last: int, texts: list[str]):
    axis = step_axis(first, last)
    assert step_texts(axis) == texts
    assert 0 <= axis.share(first) <= axis.share(last) <= 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.23456, "1.235"), (1234567, "1,234,567"), (0.00123456, "0.001235"), (1e-5, "1e-5"),
        (-3.25e-7, "-3.25e-7"), (2.5e12, "2.5e12"), (math.nan, DASH), (math.inf, DASH),
    ],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str):
    assert format_number(value) == text
