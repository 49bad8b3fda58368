"""Exposed seconds are those in which compute has nothing running."""

import pytest

from slideformer.bench.spans import Span, break_down, union

SPANS = [
    Span("compute", "forward 0", 1.0, 3.0),
    Span("compute", "forward 1", 4.0, 6.0),
    Span("h2d", "fetch 0", 0.0, 1.5),
    Span("h2d", "fetch 1", 3.5, 5.0),
    Span("adamw", "update a", 5.0, 8.0),
]


def test_busy_exposed_and_idle_of_made_up_spans():
    found = break_down(SPANS, 10.0)
    assert found.busy == {"compute": 4.0, "h2d": 3.0, "d2h": 0.0, "update": 0.0, "adamw": 3.0}
    assert found.exposed == pytest.approx({"h2d": 1.5, "d2h": 0.0, "update": 0.0, "adamw": 2.0})
    assert found.idle == pytest.approx(0.5 + 2.0)  # 3.0 to 3.5, and 8 to 10
    assert found.bound == "compute"
    assert found.break_even_tokens(8) == 6.0


def test_overlapping_intervals_count_once():
    assert union([(2.0, 3.0), (0.0, 1.0), (0.5, 1.5), (1.5, 1.75)]) == [(0.0, 1.75), (2.0, 3.0)]
