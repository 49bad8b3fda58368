"""What the run was trained on: its sources, and how long their examples are."""

from dataclasses import dataclass
from itertools import pairwise

from slideformer.report.axes import step_axis, value_axis
from slideformer.report.curve import Label, value_labels
from slideformer.report.run_data import DataFacts, Lengths

UNNAMED = "(no name)"


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram, in percent of the drawing."""

    left: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Histogram:
    bars: list[Bar]
    x_labels: list[Label]
    y_labels: list[Label]
    summary: str


def source_rows(data: DataFacts) -> list[tuple[str, list[int]]]:
    """Each source and the counts of its report, in the order of `SourceReport`; of several sources, also the sums."""
    names = [*data.sources, *[UNNAMED] * (len(data.reports) - len(data.sources))]
    rows = [(name, list(vars(report).values())) for name, report in zip(names, data.reports, strict=False)]
    if len(rows) > 1:
        rows.append(("all", [sum(column) for column in zip(*(counts for _, counts in rows), strict=True)]))
    return rows


def histogram(lengths: Lengths) -> Histogram | None:
    """Bars from the edges and counts; None where nothing was counted."""
    if not lengths.edges or not any(lengths.counts):
        return None
    low, high = lengths.edges[0], lengths.edges[-1]
    vertical = value_axis([float(count) for count in lengths.counts], from_zero=True)
    horizontal = step_axis(int(low), max(int(high), int(low) + 1))
    percent = 100 / (high - low)
    bars = [
        Bar(percent * (a - low), percent * (b - a), 100 * vertical.share(count), _words(a, b, count))
        for (a, b), count in zip(pairwise(lengths.edges), lengths.counts, strict=True)
    ]
    largest = max(range(len(bars)), key=lengths.counts.__getitem__)
    return Histogram(
        bars,
        [Label(percent * (tick - low), f"{tick:,.0f}") for tick in horizontal.ticks if low <= tick <= high],
        value_labels(vertical),
        f"{sum(lengths.counts):,} examples of {low:,.0f} to {high:,.0f} tokens; most in {bars[largest].text}",
    )


def _words(low: float, high: float, count: int) -> str:
    return f"{low:,.0f} to {high:,.0f} tokens: {count:,} examples"
