"""Seconds of a step as a table: what each lane does, which of them is the bound, and what more of it would buy."""

from slideformer.plan.plain_table import as_text, plain_table
from slideformer.plan.timing import StepTiming
from slideformer.units import format_seconds

LANE_NAMES = {
    "calls": "the host's calls", "compute": "computation", "h2d": "copies to the GPU", "d2h": "copies from the GPU",
    "adamw": "AdamW on the CPU", "disk": "from and to the disk",
}  # fmt: skip
DAY_SECONDS = 86400
WORTH = 1.01  # predictions are not better than that


def render_timing(timing: StepTiming) -> str:
    """Plain text, below the table of bytes."""
    gain = timing.tokens_per_second_if_doubled / timing.tokens_per_second
    doubled = f"gives {timing.tokens_per_second_if_doubled:,.0f} tokens/s" if gain > WORTH else "is hardly faster"
    even = f"with steps of {timing.break_even_tokens:,.0f} tokens computation takes as long as AdamW; "
    lines = [
        f"predicted for {timing.machine}: {timing.tokens_per_second:,.0f} tokens/s, bound by "
        f"{LANE_NAMES[timing.bound]}; {timing.steps:,} steps take {_duration(timing.run_seconds)}",
        (even if timing.break_even_tokens else "") + f"twice the batch_size {doubled}",
    ]
    if (unclipped := timing.seconds_unclipped) and timing.seconds > WORTH * unclipped:
        lines.append(
            f"clipping waits for the last gradient before the first update; max_grad_norm: null takes "
            f"{format_step(unclipped)} s a step, or less"
        )
    return "\n".join([_table(timing), *lines])


def _table(timing: StepTiming) -> str:
    table = plain_table()
    for column in ("lane", "busy, s", "of the step", "step if twice as fast, s"):
        table.add_column(column, justify="left" if column == "lane" else "right")
    for lane, busy in timing.lanes.items():
        bound = " (the bound)" if lane == timing.bound else ""
        share = f"{busy / timing.seconds:.0%}"
        table.add_row(LANE_NAMES[lane] + bound, format_step(busy), share, format_step(timing.faster[lane]))
    table.add_row("step", format_step(timing.seconds), "", "")
    return as_text(table)


def format_step(seconds: float) -> str:
    """Three digits: 12.3, 0.123, 0.000123."""
    return f"{seconds:#.3g}" if seconds >= 1e-4 else f"{seconds:.6f}"


def _duration(seconds: float) -> str:
    """Days from one day on."""
    return f"{seconds / DAY_SECONDS:.1f} days" if seconds >= DAY_SECONDS else format_seconds(seconds)
