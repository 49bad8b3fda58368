"""Plans of several batch sizes side by side: which fit, and how fast each is."""

from collections.abc import Mapping
from typing import Any

from slideformer.errors import DoesNotFit
from slideformer.plan.plain_table import as_text, plain_table
from slideformer.plan.plan import Plan
from slideformer.plan.timing_table import LANE_NAMES, format_step
from slideformer.units import format_bytes

Plans = Mapping[int, Plan | DoesNotFit]  # by batch size
WIDTH = 120


def render_batch_sizes(plans: Plans) -> str:
    """Plain text: a row a batch size; below, why the first that does not fit does not, and what would."""
    fitting = [plan for plan in plans.values() if isinstance(plan, Plan)]
    on_gpu = any(plan.device_budget_bytes is not None for plan in fitting)
    on_disk = any(plan.disk_peak_bytes for plan in fitting)
    with_seconds = any(plan.timing for plan in fitting)
    table = plain_table()
    table.add_column("batch_size", justify="right")
    for name, shown in (("GPU", on_gpu), ("host", True), ("disk", on_disk), ("step, s", with_seconds),
                        ("tokens/s", with_seconds)):  # fmt: skip
        if shown:
            table.add_column(name, justify="right")
    table.add_column("bound by" if with_seconds else "computed at once")
    for size, plan in plans.items():
        table.add_row(
            str(size), *(_cells(plan, on_gpu, on_disk, with_seconds) if isinstance(plan, Plan) else ["does not fit"])
        )
    refused = next(
        (f"batch_size {size}: {error}" for size, error in plans.items() if isinstance(error, DoesNotFit)), ""
    )
    return "\n".join([as_text(table, WIDTH), *([refused] if refused else [])])


def batch_sizes_as_json(plans: Plans) -> list[dict[str, Any]]:
    """A value for each batch size: its plan, or "error" and "hint"."""
    return [
        {"batch_size": size, "plan": found.as_json()} if isinstance(found, Plan)
        else {"batch_size": size, "error": found.message, "hint": found.hint}
        for size, found in plans.items()
    ]  # fmt: skip


def _cells(plan: Plan, on_gpu: bool, on_disk: bool, with_seconds: bool) -> list[str]:
    cells = [format_bytes(plan.device_peak_bytes)] if on_gpu else []
    cells.append(format_bytes(plan.host_peak_bytes))
    if on_disk:
        cells.append(format_bytes(plan.disk_peak_bytes))
    if not with_seconds:
        return [*cells, f"{plan.sizes.micro_batch_size} sequences"]
    if plan.timing is None:
        return [*cells, "", "", ""]
    return [
        *cells, format_step(plan.timing.seconds), f"{plan.timing.tokens_per_second:,.0f}", LANE_NAMES[plan.timing.bound]
    ]  # fmt: skip
