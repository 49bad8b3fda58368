"""Seconds of each block's pieces of a step, measured beside planned, as a table and a judgement."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from slideformer.bench.spans import ADAMW, COMPUTE, D2H, H2D, Span
from slideformer.plan.plain_table import as_text, plain_table
from slideformer.plan.schedule import Schedule

FORWARD, BACKWARD, FETCH, SEND, UPDATE = ("forward", "backward", "fetch", "send", "AdamW")
COMPUTED = "both"  # forward and backward together
COLUMNS = (FORWARD, BACKWARD, COMPUTED, FETCH, SEND, UPDATE)
WIDTH = 200
# The recorded pieces, by lane and name: in backward are the flush of the gradient and, of a state on the GPU, AdamW,
# as in the plan's backward (where the flush takes no time).
MEASURED = {
    (COMPUTE, "forward"): FORWARD, (COMPUTE, "backward"): BACKWARD, (COMPUTE, "flush"): BACKWARD,
    (COMPUTE, "update"): BACKWARD, (H2D, "fetch"): FETCH, (D2H, "send"): SEND, (ADAMW, "update"): UPDATE,
}  # fmt: skip
PLANNED = {
    (COMPUTE, "forward"): FORWARD, (COMPUTE, "backward"): BACKWARD, (H2D, "fetch"): FETCH, (D2H, "send"): SEND,
    (ADAMW, "update block"): UPDATE,
}  # fmt: skip

Seconds = dict[str, float]  # of a step, by piece; what does not happen is left out


@dataclass(frozen=True)
class Layer:
    """One block, or the sum of all: seconds of a step."""

    name: str
    measured: Seconds
    planned: Seconds

    def deviation(self, piece: str) -> float | None:
        """Measured over planned, less 1; None where either is not there."""
        if not self.measured.get(piece) or not self.planned.get(piece):
            return None
        return self.measured[piece] / self.planned[piece] - 1


def layers_of(spans: Sequence[Span], steps: int, schedule: Schedule, blocks: Sequence[str]) -> list[Layer]:
    """The blocks in order.

    Args:
        spans: of so many steps.
        schedule: a step as planned.
        blocks: names of their units.
    """
    measured, planned = measured_seconds(spans, steps, blocks), planned_seconds(schedule)
    return [Layer(str(i), _whole(measured[i]), _whole(planned[i])) for i in range(len(blocks))]


def measured_seconds(spans: Iterable[Span], steps: int, blocks: Sequence[str]) -> Mapping[int, Seconds]:
    """Of a step, by block and piece: the median over the steps."""
    numbers = {name: i for i, name in enumerate(blocks)}
    runs: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.begin):
        what, _, unit = span.name.partition(" ")
        block = numbers.get(unit) if span.lane == ADAMW else int(unit) if unit.isdecimal() else None
        piece = MEASURED.get((span.lane, what))
        if piece is not None and block is not None:
            runs[block, piece, what].append(span.end - span.begin)
    found: Mapping[int, Seconds] = defaultdict(dict)
    for (block, piece, _), seconds in runs.items():
        found[block][piece] = found[block].get(piece, 0.0) + step_median(seconds, steps)
    return found


def step_median(seconds: Sequence[float], steps: int) -> float:
    """Of a piece that runs equally often in each step.

    Raises:
        ValueError: it does not.
    """
    often, rest = divmod(len(seconds), steps)
    if rest:
        raise ValueError(f"{len(seconds)} runs of a piece of work in {steps} steps")
    return median(sum(seconds[k * often : (k + 1) * often]) for k in range(steps))


def planned_seconds(schedule: Schedule) -> Mapping[int, Seconds]:
    """Of a step, by block and piece. What runs across the step's end is in it in two parts."""
    found: Mapping[int, Seconds] = defaultdict(dict)
    for span in schedule.spans:
        what, _, number = span.what.rpartition(" ")
        if number.isdecimal() and (piece := PLANNED.get((span.lane, what))):
            seconds = found[int(number)]
            seconds[piece] = seconds.get(piece, 0.0) + span.stop - span.start
    return found


def total(layers: Sequence[Layer]) -> Layer:
    """The sum over the blocks."""
    return Layer("all", _sum(layer.measured for layer in layers), _sum(layer.planned for layer in layers))


def render(layers: Sequence[Layer]) -> str:
    """A row a block, and one for all: of each piece measured and planned milliseconds, and the deviation."""
    table = plain_table()
    table.add_column("block", justify="right", no_wrap=True)
    for piece in COLUMNS:
        for title in (f"{piece} ms", "plan", ""):
            table.add_column(title, justify="right", no_wrap=True)
    for layer in [*layers, total(layers)]:
        table.add_row(layer.name, *(text for piece in COLUMNS for text in _cells(layer, piece)))
    return as_text(table, WIDTH)


def largest_deviation(layers: Sequence[Layer], piece: str) -> tuple[float, str]:
    """(of all blocks the one that is farthest from zero, whose it is).

    Raises:
        ValueError: a block has nothing to compare.
    """
    found = [(layer.deviation(piece), layer.name) for layer in layers]
    if not found or any(deviation is None for deviation, _ in found):
        raise ValueError(f"{piece}: not measured, or not planned, for each block")
    return max(((d, name) for d, name in found if d is not None), key=lambda pair: abs(pair[0]))


def judge(layers: Sequence[Layer], limit: float) -> tuple[str, bool]:
    """(a summary, whether each block's forward and backward together took what was planned, to within `limit`)."""
    largest = {piece: largest_deviation(layers, piece) for piece in (FORWARD, BACKWARD, COMPUTED)}
    within = abs(largest[COMPUTED][0]) <= limit
    said = ", ".join(f"{p} {d:+.1%} (block {name})" for p, (d, name) in largest.items())
    verdict = "within" if within else "NOT within"
    return f"largest deviations from the plan: {said}\neach block's computation is {verdict} {limit:.0%}", within


def _whole(seconds: Seconds) -> Seconds:
    both = [seconds[piece] for piece in (FORWARD, BACKWARD) if piece in seconds]
    return {**seconds, COMPUTED: sum(both)} if len(both) == 2 else dict(seconds)


def _sum(parts: Iterable[Seconds]) -> Seconds:
    found: Seconds = {}
    for part in parts:
        for piece, seconds in part.items():
            found[piece] = found.get(piece, 0.0) + seconds
    return found


def _cells(layer: Layer, piece: str) -> list[str]:
    deviation = layer.deviation(piece)
    both = [values.get(piece) for values in (layer.measured, layer.planned)]
    shown = ["-" if seconds is None else f"{seconds * 1e3:.2f}" for seconds in both]
    return [*shown, "" if deviation is None else f"{deviation:+.1%}"]
