"""A plan as a table that is read at a glance."""

from typing import TYPE_CHECKING

from rich.table import Table

from slideformer.plan.choices_table import render_choices
from slideformer.plan.plain_table import as_text, plain_table
from slideformer.plan.timing_table import render_timing
from slideformer.units import format_bytes

if TYPE_CHECKING:
    from slideformer.plan.plan import Plan

NO_RATES = "seconds: this machine's rates are not known; `slideformer probe` measures them once, in less than a minute"

NO_DISK_RATES = "the disk was not measured, so these seconds are without it; `slideformer probe --directory DIR` does"


def render(plan: "Plan") -> str:
    """Plain text: what was chosen, and the bytes of each tier beside its budget."""
    sizes = plan.sizes
    title = (
        f"plan: {plan.model.parameters / 1e9:.3g}B parameters in {len(plan.model.blocks)} blocks; "
        f"{sizes.micro_batches} x {sizes.micro_batch_size} sequences of up to {sizes.max_length} tokens a step"
    )
    seconds = ["", render_timing(plan.timing)] if plan.timing else []
    if plan.timing and plan.disk_peak_bytes and "disk" not in plan.timing.lanes:
        seconds.append(NO_DISK_RATES)
    return "\n".join([title, render_choices(plan), "", _tables(plan), *seconds])


def _tables(plan: "Plan") -> str:
    table = plain_table()
    for column in ("tier", "what", "bytes", "budget"):
        table.add_column(column, justify="right" if column in ("bytes", "budget") else "left")
    if plan.device_budget_bytes is not None:
        _add_tier(table, *_device_tier(plan), plan.device_peak_bytes, plan.device_budget_bytes)
    _add_tier(table, "host", plan.host, plan.host_peak_bytes, plan.host_budget_bytes)
    if plan.disk_budget_bytes is not None:
        _add_tier(table, "disk", plan.disk, plan.disk_peak_bytes, plan.disk_budget_bytes)
    return as_text(table)


def _device_tier(plan: "Plan") -> tuple[str, dict[str, int]]:
    phase = max(plan.device, key=lambda name: sum(plan.device[name].values()))
    return f"GPU, {phase}", plan.device[phase]


def _add_tier(table: Table, tier: str, parts: dict[str, int], total: int, budget: int) -> None:
    for name, size in parts.items():
        if size:
            table.add_row(tier, name, format_bytes(size), "")
            tier = ""
    table.add_row("", "total", format_bytes(total), format_bytes(budget), end_section=True)
