"""Sources and lengths as the report shows them."""

import pytest

from slideformer.report.datasets import histogram, source_rows
from slideformer.report.run_data import DataFacts, Lengths, SourceReport


def test_one_source_needs_no_sum():
    data = DataFacts(sources=["a"], reports=[SourceReport(records=3, kept=2)])
    assert source_rows(data) == [("a", [3, 2, 0, 0, 0, 0, 0, 0])]


def test_several_sources_are_added_up_also_without_names():
    reports = [SourceReport(records=3, tokens=10), SourceReport(records=2, tokens=1, trained_tokens=1)]
    assert source_rows(DataFacts(sources=["a"], reports=reports)) == [
        ("a", [3, 0, 0, 0, 0, 10, 0, 0]), ("(no name)", [2, 0, 0, 0, 0, 1, 1, 0]), ("all", [5, 0, 0, 0, 0, 11, 1, 0]),
    ]  # fmt: skip


def test_bars_stand_at_their_edges():
    drawn = histogram(Lengths(edges=[0, 10, 20, 40], counts=[5, 10, 0]))
    assert drawn and [(bar.left, bar.width) for bar in drawn.bars] == [(0, 25), (25, 25), (50, 50)]
    assert [bar.height for bar in drawn.bars] == pytest.approx([50, 100, 0])
    assert drawn.bars[1].text == "10 to 20 tokens: 10 examples"
    assert drawn.summary == "15 examples of 0 to 40 tokens; most in 10 to 20 tokens: 10 examples"
    assert [label.text for label in drawn.x_labels] == ["0", "10", "20", "30", "40"]


def test_no_lengths_are_no_histogram():
    assert histogram(Lengths()) is None and histogram(Lengths(edges=[0, 1], counts=[0])) is None
