"""Seconds of a step as a table: what each lane does, which of them is the bound, and what more of it would buy."""

from io import StringIO

from rich.console import Console
from rich.table import Table

from slideformer.plan.timing import StepTiming
from slideformer.units import format_seconds

LANE_NAMES = {
    "compute": "computation", "h2d": "copies to the GPU", "d2h": "copies from the GPU", "adamw": "AdamW on the CPU",
    "disk": "from and to the disk",
}  # fmt: skip
DAY_SECONDS = 86400


def render_timing(timing: StepTiming) -> str:
    """Plain text, below the table of bytes."""
    doubled = f"twice the batch_size gives {timing.tokens_per_second_if_doubled:,.0f} tokens/s"
    even = f"with steps of {timing.break_even_tokens:,.0f} tokens computation takes as long as AdamW; "
    lines = [
        f"predicted for {timing.machine}: {timing.tokens_per_second:,.0f} tokens/s, bound by "
        f"{LANE_NAMES[timing.bound]}; {timing.steps:,} steps take {_duration(timing.run_seconds)}",
        (even if timing.break_even_tokens else "") + doubled,
    ]
    return "\n".join(["", _table(timing), *lines])


def _table(timing: StepTiming) -> str:
    out = StringIO()
    console = Console(file=out, width=100, no_color=True)
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in ("lane", "busy, s", "of the step", "step if twice as fast, s"):
        table.add_column(column, justify="left" if column == "lane" else "right")
    for lane, busy in timing.lanes.items():
        bound = " (the bound)" if lane == timing.bound else ""
        share = f"{busy / timing.seconds:.0%}"
        table.add_row(LANE_NAMES[lane] + bound, format_step(busy), share, format_step(timing.faster[lane]))
    table.add_row("step", format_step(timing.seconds), "", "")
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def format_step(seconds: float) -> str:
    """Three digits: 12.3, 0.123, 0.000123."""
    return f"{seconds:#.3g}" if seconds >= 1e-4 else f"{seconds:.6f}"


def _duration(seconds: float) -> str:
    """Days from one day on."""
    return f"{seconds / DAY_SECONDS:.1f} days" if seconds >= DAY_SECONDS else format_seconds(seconds)
