"""A plan as a table that is read at a glance."""

from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from slideformer.plan.offloading import what_is_on_disk
from slideformer.plan.timing_table import render_timing
from slideformer.units import format_bytes

if TYPE_CHECKING:
    from slideformer.plan.plan import Plan

NO_RATES = "seconds: this machine's rates are not known; `slideformer probe` measures them once, in less than a minute"


def render(plan: "Plan") -> str:
    """Plain text: what was chosen, and the bytes of each tier beside its budget."""
    sizes = plan.sizes
    batch = f"{sizes.micro_batches} x {sizes.micro_batch_size} sequences"
    kept = len(plan.model.blocks) - sizes.host_boundaries
    lines = [
        f"plan: {plan.model.parameters / 1e9:.3g}B parameters in {len(plan.model.blocks)} blocks, "
        f"{sizes.window_depth} in the window; {batch} of up to {sizes.max_length} tokens a step; "
        f"{kept} of {len(plan.model.blocks)} boundary activations stay on the device; "
        f"{_recomputation(plan)}{_residency(plan)}{_offloading(plan)}"
    ]
    return "\n".join([*lines, _tables(plan), *([render_timing(plan.timing)] if plan.timing else [])])


def _tables(plan: "Plan") -> str:
    out = StringIO()
    console = Console(file=out, width=100, no_color=True)
    table = Table(box=None, pad_edge=False, show_edge=False, show_footer=True)
    for column in ("tier", "what", "bytes", "budget"):
        table.add_column(column, justify="right" if column in ("bytes", "budget") else "left")
    if plan.device_budget_bytes is not None:
        _add_tier(table, *_device_tier(plan), plan.device_peak_bytes, plan.device_budget_bytes)
    _add_tier(table, "host", plan.host, plan.host_peak_bytes, plan.host_budget_bytes)
    if plan.disk_budget_bytes is not None:
        _add_tier(table, "disk", plan.disk, plan.disk_peak_bytes, plan.disk_budget_bytes)
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _device_tier(plan: "Plan") -> tuple[str, dict[str, int]]:
    phase = max(plan.device, key=lambda name: sum(plan.device[name].values()))
    return f"GPU, {phase}", plan.device[phase]


def _add_tier(table: Table, tier: str, parts: dict[str, int], total: int, budget: int) -> None:
    for name, size in parts.items():
        if size:
            table.add_row(tier, name, format_bytes(size), "")
            tier = ""
    table.add_row("", "total", format_bytes(total), format_bytes(budget), end_section=True)


def _offloading(plan: "Plan") -> str:
    words = what_is_on_disk(plan)
    return f"; on disk: {words}" if words else ""


def _recomputation(plan: "Plan") -> str:
    blocks = len(plan.model.blocks)
    kept, outputs = plan.sizes.kept_of(blocks)
    in_part = f", {outputs} but for their matrix products and attention" if outputs else ""
    return f"{blocks - kept - outputs or 'no'} blocks are recomputed{in_part}"


def _residency(plan: "Plan") -> str:
    sizes = plan.sizes
    ends = "embedding and head" if sizes.resident_ends else ""
    blocks = f"{sizes.resident} blocks" if sizes.resident else ""
    resident = " and ".join(filter(None, [blocks, ends]))
    return f"; {resident} are updated on the GPU, where their state stays" if resident else ""
