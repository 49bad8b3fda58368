"""The table of `slideformer bench`: one row a case, what was measured beside what was planned and predicted."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from slideformer.units import GIB

COLUMNS = (
    "sequences", "GPU budget", "tokens/s", "predicted", "MFU", "GPU allocated", "reserved", "plan", "host peak", "plan",
    "compute", "h2d", "d2h", "AdamW",
)  # fmt: skip
WIDTH = 160


def render(results: Sequence[dict[str, Any]]) -> str:
    """Text. Each result is a case's fields and what `slideformer.bench.sliding.measure` returned, or its "error"."""
    table = Table(*COLUMNS, box=box.SIMPLE, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for result in results:
        table.add_row(*_case(result), *_measured(result))
    console = Console(width=WIDTH, no_color=True)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().strip("\n").splitlines()]
    return "\n".join([*lines, *_errors(results)])


def _case(result: dict[str, Any]) -> tuple[str, str]:
    return f"{result['sequences']} x {result['length']}", _gib(result["gpu_budget_bytes"])


def _measured(result: dict[str, Any]) -> list[str]:
    if "error" in result:
        return ["failed"]
    predicted = result["planned"] and f"{result['planned']['tokens_per_second']:,.0f}"
    bytes_of = ("gpu_allocated_bytes", "gpu_reserved_bytes", "gpu_planned_bytes", "host_peak_bytes")
    return [
        f"{result['tokens_per_second']:,.0f}", predicted or "-", _percent(result["mfu"]),
        *(_gib(result.get(name)) for name in (*bytes_of, "host_planned_bytes")),
        *(_percent(result[f"{lane}_busy"]) for lane in ("compute", "h2d", "d2h")),
        f"{result['optimizer_seconds']:.2f} s",
    ]  # fmt: skip


def _errors(results: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{' '.join(_case(result))}: {result['error']}" for result in results if "error" in result]


def _gib(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / GIB:.2f} GiB"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
