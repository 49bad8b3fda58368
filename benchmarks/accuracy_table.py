"""The table of `plan_accuracy.py`, and what is said under it."""

import math
from collections.abc import Sequence
from io import StringIO

from accuracy_rows import ENOUGH, MEMORY_BAR, SECONDS_BAR, Pair, Row, name_of
from rich.console import Console
from rich.table import Table

from slideformer.bench.case import Case
from slideformer.units import GIB

COLUMNS = ("configuration", "GPU GiB", "plan", "", "host GiB", "plan", "", "step s", "said", "", "bound", "on disk", "")
WIDTH = 200


def render(rows: Sequence[Row]) -> str:
    """Plain text. Percentages are of the plan, and those that miss have a "!"; the last column has the first line of
    an error, or the file that a row is from."""
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for column in table.columns[1:10]:
        column.justify = "right"
    for column in table.columns[:-1]:
        column.no_wrap = True
    for row in rows:
        table.add_row(*_cells(row))
    out = StringIO()
    Console(file=out, width=WIDTH, no_color=True, markup=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _cells(row: Row) -> list[str]:
    (_, gpu, memory), (_, host, _), (_, seconds, time) = row.judged()
    return [
        name_of(row.case), *_numbers(gpu, GIB, ".2f", memory), *_numbers(host, GIB, ".2f", memory),
        *_numbers(seconds, 1, ".3f", time), row.bound or "", str(row.on_disk or ""),
        (row.error or row.source).partition("\n")[0],
    ]  # fmt: skip


def _numbers(pair: Pair | None, scale: float, form: str, bar: float) -> list[str]:
    if pair is None:
        return ["-", "-", "-"]
    flag = "!" if abs(pair.deviation) > bar else ""
    return [format(pair.measured / scale, form), format(pair.planned / scale, form), f"{pair.deviation:+.1%}{flag}"]


def line_of(row: Row) -> str:
    """One configuration while the others are still being measured."""
    pairs = [f"{what} {pair.deviation:+.1%}" for what, pair, _ in row.judged() if pair]
    return f"{name_of(row.case)}: {row.error or ', '.join(pairs)}"


def summarize(rows: Sequence[Row], replaced: Sequence[Row] = (), not_measured: Sequence[Case] = ()) -> str:
    """How many configurations there are, how far they are from their plans, and which too far.

    Args:
        replaced: earlier measurements of the same configurations, which do not count.
        not_measured: configurations of the grid that are not in the rows.
    """
    missed = [f"{name_of(row.case)} ({', '.join(row.misses())})" for row in rows if row.misses()]
    failed = [name_of(row.case) for row in rows if row.error is not None]
    held, few = sum(row.holds for row in rows), f" (fewer than {ENOUGH})" if len(rows) < ENOUGH else ""
    lines = [
        f"{len(rows)} configurations{few}: {held} within {MEMORY_BAR:.0%} of the plan's peaks "
        f"and {SECONDS_BAR:.0%} of its seconds, {len(missed)} not, {len(failed)} failed, "
        f"{sum(row.out_of_memory for row in rows)} of them out of memory",
        f"measured / plan - 1: {'; '.join(_range(rows, index) for index in range(3))}",
        f"covered: {_coverage(rows)}",
        *([f"not within: {'; '.join(missed)}"] if missed else []),
        *([f"failed: {'; '.join(failed)}"] if failed else []),
    ]
    if replaced:
        bad = sum(not row.holds for row in replaced)
        lines.append(
            f"replaced by later measurements of the same: {len(replaced)}, of which {bad} not within or failed"
        )
    if not_measured:
        lines.append(f"of the grid, not measured: {', '.join(map(name_of, not_measured))}")
    return "\n".join(lines)


def _range(rows: Sequence[Row], index: int) -> str:
    pairs = [row.judged()[index] for row in rows]
    found = [pair.deviation for _, pair, _ in pairs if pair]
    name = ("GPU peak", "host peak", "seconds")[index]
    return f"{name} {min(found):+.1%} to {max(found):+.1%}" if found else f"{name}: nothing"


def _coverage(rows: Sequence[Row]) -> str:
    """Of what did not fail."""
    cases = [row.case for row in rows if row.error is None]
    if not cases:
        return "nothing"
    models = ", ".join(sorted({case.model for case in cases}))
    budgets = sorted({case.gpu_budget_bytes or math.inf for case in cases})
    sizes = ", ".join("none" if budget == math.inf else f"{budget / GIB:.4g} GiB" for budget in budgets)
    shortest, longest = min(case.length for case in cases), max(case.length for case in cases)
    disk = sum(row.on_disk > 0 for row in rows)
    return f"{models}; GPU budgets {sizes}; {shortest} to {longest} tokens a sequence; {disk} with something on disk"
