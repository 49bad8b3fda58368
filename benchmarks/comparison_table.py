"""The table of `compare.py`."""

from collections.abc import Callable
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from slideformer.units import GIB

Result = dict[str, Any]
REFERENCES = ("resident", "deepspeed-zero3")  # what ratios are to


def render(rows: list[Result], results: list[Result], heading: bool = True) -> str:
    """Plain text of `rows`; ratios are to the references among `results` with as many sequences."""
    table = Table(box=None, pad_edge=False, show_header=heading)
    for name, value in COLUMNS.items():
        table.add_column(name, justify="left" if value in (_system, _note) else "right", no_wrap=value is not _note)
    for row in rows:
        table.add_row(*(value(row, results) for value in COLUMNS.values()))
    out = StringIO()
    Console(file=out, width=200, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def ratio(row: Result, results: list[Result], reference: str) -> float | None:
    """Tokens per second over those of the reference with as many sequences of the same length; None if either is not
    there."""
    same = [r for r in results if r["system"] == reference and _size(r) == _size(row) and "tokens_per_second" in r]
    if not same or "tokens_per_second" not in row:
        return None
    return row["tokens_per_second"] / same[-1]["tokens_per_second"]


def _size(row: Result) -> tuple[int, int]:
    return row["sequences"], row["length"]


def _system(row: Result, _: list[Result]) -> str:
    return row["system"]


def _note(row: Result, _: list[Result]) -> str:
    return row.get("error") or row.get("note", "")


def _ratio_to(reference: str) -> Callable[[Result, list[Result]], str]:
    def text(row: Result, results: list[Result]) -> str:
        value = ratio(row, results, reference)
        return "" if value is None else f"{value:.3f}"

    return text


def _number(key: str, form: str, scale: float = 1.0) -> Callable[[Result, list[Result]], str]:
    def text(row: Result, _: list[Result]) -> str:
        value = row.get(key)
        return "" if value is None else format(value / scale, form)

    return text


def _predicted(row: Result, _: list[Result]) -> str:
    return format(row["planned"]["seconds"], ".3f") if row.get("planned") else ""


COLUMNS: dict[str, Callable[[Result, list[Result]], str]] = {
    "system": _system,
    "seqs": _number("sequences", ".0f"),
    "budget GiB": _number("gpu_budget_bytes", ".1f", GIB),
    "tokens/s": _number("tokens_per_second", ",.0f"),
    "/resident": _ratio_to(REFERENCES[0]),
    "/zero3": _ratio_to(REFERENCES[1]),
    "MFU": _number("mfu", ".1%"),
    "step s": _number("step_seconds", ".3f"),
    "said": _predicted,
    "parts": _number("micro_batches", ".0f"),
    "GPU GiB": _number("gpu_allocated_bytes", ".2f", GIB),
    "reserved": _number("gpu_reserved_bytes", ".2f", GIB),
    "planned": _number("gpu_planned_bytes", ".2f", GIB),
    "host GiB": _number("host_peak_bytes", ".1f", GIB),
    "taken": _number("host_taken_bytes", ".1f", GIB),
    "pinned": _number("pinned_bytes", ".1f", GIB),
    "": _note,
}
