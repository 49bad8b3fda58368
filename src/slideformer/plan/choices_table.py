"""What a plan chose, by the names of the settings that pin it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from slideformer.plan.plain_table import as_text, plain_table

if TYPE_CHECKING:
    from slideformer.plan.plan import Plan


def render_choices(plan: "Plan") -> str:
    """Plain text: a row a choice; what cannot be chosen, or is as always, is left out."""
    table = plain_table()
    for column in ("setting", "value", "meaning"):
        table.add_column(column, justify="right" if column == "value" else "left", no_wrap=True)
    for row in [
        *_always(plan),
        *(_on_gpu(plan) if plan.device_budget_bytes is not None else []),
        *_kept(plan),
        *_rest(plan),
    ]:
        table.add_row(*row)
    return as_text(table)


def _always(plan: "Plan") -> Iterator[tuple[str, str, str]]:
    sizes = plan.sizes
    times = f", {sizes.micro_batches} times a step" if sizes.micro_batches > 1 else ": the whole step"
    yield "micro_batch_size", str(sizes.micro_batch_size), f"sequences computed at once{times}"
    where = "ready" if plan.device_budget_bytes is None else "on the GPU"
    yield "window_depth", str(sizes.window_depth), f"blocks whose weights are {where} at once"


def _on_gpu(plan: "Plan") -> Iterator[tuple[str, str, str]]:
    blocks, sizes = len(plan.model.blocks), plan.sizes
    yield "resident", f"{sizes.resident}/{blocks}", "blocks updated on the GPU, where their state stays"
    yield "resident_ends", str(sizes.resident_ends).lower(), "whether embedding and head are, too"
    on_host = sizes.boundaries_on_host(blocks)
    yield "host_boundaries", f"{on_host}/{blocks}", "blocks whose inputs wait for backward in host memory"


def _kept(plan: "Plan") -> Iterator[tuple[str, str, str]]:
    blocks = len(plan.model.blocks)
    kept, outputs = plan.sizes.kept_of(blocks)
    yield "kept", f"{kept}/{blocks}", "blocks of which nothing is recomputed in backward"
    yield "kept_outputs", f"{outputs}/{blocks}", "blocks recomputed but for their matrix products and attention"
    if plan.sizes.host_outputs:
        forwards = f"{plan.sizes.forwards_on_host(blocks)}/{plan.sizes.recomputed_forwards(blocks)}"
        yield "host_outputs", forwards, "forwards of the others of which these wait in host memory"


def _rest(plan: "Plan") -> Iterator[tuple[str, str, str]]:
    blocks, sizes = len(plan.model.blocks), plan.sizes
    if not sizes.resident_gradients:  # clipped, all of them wait
        slots = sizes.slots_for(blocks)
        yield "gradient_slots", f"{slots}/{blocks}", "blocks whose gradients may wait in host memory"
    if plan.disk_budget_bytes is not None:
        yield "disk_blocks", f"{sizes.disk_blocks}/{blocks}", "blocks whose optimizer state is on disk"
        boundaries, weights = sizes.boundaries_on_disk(blocks), sizes.disk_weight_blocks
        yield "disk_boundaries", f"{boundaries}/{blocks}", "blocks whose inputs wait there for backward"
        yield "disk_weight_blocks", f"{weights}/{blocks}", "blocks whose weights are there, too"
    if sizes.head_shards > 1:
        yield "head_shards", str(sizes.head_shards), "parts of the vocabulary in which the head passes the GPU"
