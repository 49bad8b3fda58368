"""The decision: sizes that fit the budgets, or a refusal that says what would."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from math import ceil

import torch

from slideformer.memory.host_outputs import FIXED_BYTES
from slideformer.memory.window import slot_numel
from slideformer.plan.choice import Costs, Fits, Group, Limits, choose, halvings
from slideformer.plan.feasible import Asked, Possible, of_length, one_that_fits
from slideformer.plan.footprint import ModelSizes, Work, device_bytes, disk_bytes, host_bytes
from slideformer.plan.offloading import Reach, fewest_on_disk, reaches
from slideformer.plan.pace import Pace
from slideformer.plan.pin_check import check_pins
from slideformer.plan.pins import AUTO
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.refusal import does_not_fit
from slideformer.plan.sizes import Sizes

FILE_BYTES = 2  # a parameter in published files, nearly always
TARGET_TOKENS = 8192  # of a micro-batch: enough to fill a large GPU; more only costs memory
PREFERRED_DEPTH = 3  # one layer computes, one is ready, one arrives
PREFERRED_SLOTS = 8  # gradients that wait for the CPU before backward does
BREAK_EVEN_TOKENS = 24_000  # of a step, where AdamW on 16 cores takes as long as a large GPU: a rule of thumb
HEAD_CHUNK_BYTES = 640 * 2**20  # of logits that exist at once


def make_plan(
    model: ModelSizes,
    work: Work,
    workload: Workload,
    dtype: torch.dtype,
    host_budget_bytes: int,
    device_budget_bytes: int | None,
    process_bytes: int,
    disk_budget_bytes: int | None = None,
    pace: Pace | None = None,
) -> Plan:
    """Of the sizes that fit, those of the shortest step; where its seconds are not known, the first of the preferred.

    Preferred: nothing on disk, then micro-batches of about `TARGET_TOKENS`, then a window of three layers, then as many
    boundary activations on the device as there is room for, then as few blocks on disk. The device memory that is left
    goes to resident blocks first, as many as `wanted_resident` says, and then to keeping what would be recomputed.

    Args:
        device_budget_bytes: None where layers compute in host memory; what they need is then counted there.
        process_bytes: host memory of the process before the engine is built.
        disk_budget_bytes: None if nothing may be on disk.
        pace: of a step on a GPU; None: its seconds are not known.

    Raises:
        DoesNotFit: with what is needed, and what would fit.
        ConfigError: a size is pinned that no budget makes possible.
    """

    @cache  # tried again with each kind on disk
    def plan_of(sizes: Sizes) -> Plan:
        budgets = (host_budget_bytes, device_budget_bytes, disk_budget_bytes)
        pinned = workload.pins.of(sizes, len(model.blocks))
        return _plan(pinned, model, work, dtype, *budgets, process_bytes)

    workloads = list(_in_shards(model, workload))
    for reach, asked in product(reaches(disk_budget_bytes), workloads):
        limits = _limits(model, work, asked, dtype, device_budget_bytes, reach)
        candidates = _candidates(model, asked, dtype)
        starts = [sizes for sizes in candidates if not sizes.host_boundaries]
        if pace is not None and device_budget_bytes is not None:
            sizes = _of_the_shortest_step(starts, asked, limits, plan_of, pace, dtype)
            chosen = None if sizes is None else plan_of(sizes)
        else:
            chosen = _first_preferred(candidates, limits, plan_of) or _fewest_resident(starts, asked, limits, plan_of)
        if chosen is not None:
            return _copy_what_fits(chosen, asked, plan_of)
    budgets = Asked(workload, host_budget_bytes, device_budget_bytes, disk_budget_bytes)
    raise does_not_fit(budgets, _possible(model, work, workload.max_length, dtype, process_bytes))


def _possible(model: ModelSizes, work: Work, measured_length: int, dtype: torch.dtype, process_bytes: int) -> Possible:
    """Finds a plan for other workloads and budgets, if there is one, in a fraction of the time of `make_plan`."""

    @cache
    def needed(workload: Workload, sizes: Sizes, on_device: bool) -> Plan:
        pinned, budget = workload.pins.of(sizes, len(model.blocks)), 0 if on_device else None
        shorter = of_length(work, workload.max_length, measured_length)
        return _plan(pinned, model, shorter, dtype, 0, budget, None, process_bytes)

    def possible(asked: Asked) -> Plan | None:
        def plan_of(sizes: Sizes) -> Plan:
            plan = needed(asked.workload, sizes, asked.device is not None)
            return replace(
                plan,
                host_budget_bytes=asked.host,
                device_budget_bytes=asked.device,
                disk_budget_bytes=asked.disk,
            )

        limits = _limits(model, work, asked.workload, dtype, asked.device, reaches(asked.disk)[-1])
        limits = replace(limits, keeps_on_host=False)  # which takes memory
        for workload in _in_shards(model, asked.workload):
            starts = [sizes for sizes in _candidates(model, workload, dtype) if not sizes.host_boundaries]
            if found := one_that_fits(starts, limits, _fits_of(plan_of, workload), plan_of):
                return found
        return None

    return possible


def _in_shards(model: ModelSizes, workload: Workload) -> Iterator[Workload]:
    """The head whole, then in twice as many shards each time, as long as these are larger than a layer."""
    yield workload
    shard = model.layouts[model.head].numel // workload.head_shards
    pinned = workload.pins.head_shards is not None
    if not pinned and model.head_shards_exactly and shard > slot_numel(model.block_layouts):
        yield from _in_shards(model, replace(workload, head_shards=2 * workload.head_shards))


def _limits(
    model: ModelSizes, work: Work, workload: Workload, dtype: torch.dtype, device_bytes: int | None, reach: Reach
) -> Limits:
    """What may be chosen: only what computes in bf16 on a device can be resident, as its weights are used in place."""
    n, pinned, pins = len(model.blocks), workload.resident, workload.pins
    can_be_resident = device_bytes is not None and dtype == torch.bfloat16
    check_pins(
        workload,
        n,
        can_be_resident=can_be_resident,
        can_be_sharded=model.head_shards_exactly,
        has_disk=reach != Reach.NOTHING,
    )
    most = n - min(pins.disk_blocks or 0, n)  # a block's state is in one place
    keeps_outputs = not workload.recompute_all and work.kept_outputs_bytes > 0
    ends = (False, True) if can_be_resident and pinned != 0 else (False,)
    return Limits(
        blocks=n,
        resident=(0, most if can_be_resident else 0) if pinned is None else (min(pinned, n), min(pinned, n)),
        ends=ends if pins.resident_ends is None else (pins.resident_ends,),
        kept=None if workload.kept is None else min(workload.kept, n),
        keeps=not workload.recompute_all,
        keeps_outputs=keeps_outputs and pins.kept_outputs is None,
        keeps_on_host=keeps_outputs and pins.host_outputs == AUTO and device_bytes is not None,
        reach=reach,
    )


def _of_the_shortest_step(
    starts: list[Sizes],
    workload: Workload,
    limits: Limits,
    plan_of: Callable[[Sizes], Plan],
    pace: Pace,
    dtype: torch.dtype,
) -> Sizes | None:
    fits, model = _fits_of(plan_of, workload), plan_of(starts[0]).model
    costs = Costs(
        seconds=lambda sizes: pace.seconds(model, plan_of(sizes).sizes, dtype),
        least_seconds=lambda sizes: pace.least_seconds(model, plan_of(sizes).sizes, dtype),
        beside_seconds=lambda sizes: pace.beside_seconds(model, plan_of(sizes).sizes, dtype),
    )
    tried = halvings(sorted({sizes.micro_batch_size for sizes in starts}, reverse=True))
    one_slot_each = list(dict.fromkeys(replace(sizes, gradient_slots=limits.blocks) for sizes in starts))
    large = [sizes for sizes in one_slot_each if sizes.micro_batch_size in tried]
    others = [sizes for sizes in one_slot_each if sizes.micro_batch_size not in tried]
    return choose(large, limits, fits, costs) or choose(others, limits, fits, costs)


def _first_preferred(candidates: list[Sizes], limits: Limits, plan_of: Callable[[Sizes], Plan]) -> Plan | None:
    """The first plan that fits, with nothing on disk if possible; device memory that is left is spent."""
    plans = [plan_of(sizes) for sizes in candidates]
    found = next(filter(_fits, plans), None)
    if found is None and limits.reach:
        with_disk = (fewest_on_disk(plan, plan_of, limits.reach) for plan in plans if plan.fits_device)
        found = next(filter(_fits, with_disk), None)
    if found is None:
        return None
    return _keep_what_fits(_spend_on_residents(found, limits, plan_of), limits, plan_of)


def wanted_resident(step_tokens: int, blocks: int) -> int:
    """Blocks to update on the device so that the CPU's time for the others hides behind computation, where rates are
    not known: with half of `BREAK_EVEN_TOKENS` a step, half of the blocks; from these on none."""
    return ceil(blocks * max(0.0, 1 - step_tokens / BREAK_EVEN_TOKENS))


def _spend_on_residents(plan: Plan, limits: Limits, plan_of: Callable[[Sizes], Plan]) -> Plan:
    least, most = limits.resident
    wanted = max(least, min(most, wanted_resident(plan.sizes.step_tokens, limits.blocks)))
    if not wanted:
        return plan
    for ends in reversed(limits.ends):
        ways = [replace(plan.sizes, resident=count, resident_ends=ends) for count in range(least, wanted + 1)]
        if _fits(plan_of(ways[0])):
            return _last_that_fits(ways, plan_of)
    return plan


def _fewest_resident(
    starts: list[Sizes], workload: Workload, limits: Limits, plan_of: Callable[[Sizes], Plan]
) -> Plan | None:
    """Where host memory and disk do not hold the states: on the device what has to be there."""
    fits = _fits_of(plan_of, workload)
    for group in (Group(start, ends, limits, fits) for start in starts for ends in limits.ends):
        for resident in group.fewest():
            return _keep_what_fits(plan_of(group.candidates(resident)[0]), limits, plan_of)
    return None


def _fits_of(plan_of: Callable[[Sizes], Plan], workload: Workload) -> Fits:
    """What is pinned to the disk is not chosen where host memory is short, so the disk is asked with it."""
    pinned = workload.pins.on_disk
    return Fits(
        device=lambda sizes: plan_of(sizes).fits_device,
        host=lambda sizes: plan_of(sizes).fits_host and (not pinned or plan_of(sizes).fits_disk),
        disk=lambda sizes: plan_of(sizes).fits_disk,
    )


def _candidates(model: ModelSizes, workload: Workload, dtype: torch.dtype) -> list[Sizes]:
    """Sizes from the most to the least preferred."""
    n = len(model.blocks)
    depths = [workload.window_depth] if workload.window_depth else [PREFERRED_DEPTH, 2]
    slots = [n] if workload.clipping else sorted({min(n, PREFERRED_SLOTS), min(n, 2)}, reverse=True)
    chunk = _power_of_two_below(HEAD_CHUNK_BYTES // (model.vocabulary * dtype.itemsize))
    return [
        Sizes(
            window_depth=min(depth, n),
            micro_batch_size=micro,
            micro_batches=-(-workload.batch_size // micro),
            max_length=workload.max_length,
            gradient_slots=slot,
            host_boundaries=boundaries,
            head_chunk=max(16, min(chunk, micro * workload.max_length)),
            resident=min(workload.resident or 0, n),
            resident_gradients=workload.clipping,
            kept=0 if workload.recompute_all else min(workload.kept or 0, n),
            optimizer_state=workload.optimizer_state,
            head_shards=workload.head_shards,
        )
        for slot in slots
        for micro in _micro_batch_sizes(workload)
        for depth in depths
        for boundaries in range(n + 1)
    ]


def _keep_what_fits(plan: Plan, limits: Limits, plan_of: Callable[[Sizes], Plan]) -> Plan:
    """Spend the memory that is left on keeping forwards for their backward, the last layers first: all expensive
    outputs, which save more time a byte, and then the rest."""
    n, counts = limits.blocks, range(limits.blocks + 1)
    if not limits.keeps:
        return plan
    if limits.kept is not None:
        return _last_that_fits([plan.sizes, replace(plan.sizes, kept=limits.kept)], plan_of)
    if not limits.keeps_outputs:
        return _last_that_fits([replace(plan.sizes, kept=count) for count in counts], plan_of)
    outputs = _last_that_fits([replace(plan.sizes, kept_outputs=count) for count in counts], plan_of)
    if outputs.sizes.kept_outputs < n:
        return outputs
    return _last_that_fits([replace(plan.sizes, kept=count, kept_outputs=n - count) for count in counts], plan_of)


def _copy_what_fits(plan: Plan, workload: Workload, plan_of: Callable[[Sizes], Plan]) -> Plan:
    """Spend what is left on host memory for copies of units, so that updates do not wait for a checkpoint's writer."""
    most = len(plan.model.layouts) if workload.saves_in_background else 0
    return _last_that_fits([replace(plan.sizes, snapshot_units=units) for units in range(most + 1)], plan_of)


def _last_that_fits(ascending: list[Sizes], plan_of: Callable[[Sizes], Plan]) -> Plan:
    """The hungriest plan that fits, of sizes each of which needs more than the one before; the first does fit."""
    fits = bisect_right(ascending, False, key=lambda sizes: not _fits(plan_of(sizes)))
    return plan_of(ascending[max(0, fits - 1)])


def _micro_batch_sizes(workload: Workload) -> list[int]:
    if workload.micro_batch_size:
        return [workload.micro_batch_size]
    most = max(1, min(workload.batch_size, TARGET_TOKENS // workload.max_length))
    groups = sorted({-(-workload.batch_size // size) for size in range(1, most + 1)})
    return [-(-workload.batch_size // count) for count in groups]  # as even as the count of groups allows


def _plan(
    sizes: Sizes,
    model: ModelSizes,
    work: Work,
    dtype: torch.dtype,
    host_budget_bytes: int,
    device_budget_bytes: int | None,
    disk_budget_bytes: int | None,
    process_bytes: int,
) -> Plan:
    if sizes.host_outputs:
        outputs = sizes.micro_batch_size * work.kept_outputs_bytes + FIXED_BYTES
        sizes = replace(sizes, host_output_bytes=outputs)
    host = {"process": process_bytes, **host_bytes(model, sizes, dtype)}
    device = device_bytes(model, work, sizes, dtype)
    disk = disk_bytes(model, sizes, dtype)
    plan = Plan(sizes, model, host, device, disk, host_budget_bytes, device_budget_bytes, disk_budget_bytes)
    loading = FILE_BYTES * max(layout.numel for layout in model.layouts.values())  # a unit, as its files hold it
    if device_budget_bytes is None:
        return replace(plan, host={**host, "computation": max(loading, plan.device_peak_bytes)})
    return replace(plan, host={**host, "loading": loading})


def _fits(plan: Plan) -> bool:
    return plan.fits_device and plan.fits_host and plan.fits_disk


def _power_of_two_below(value: int) -> int:
    return 1 << max(0, value.bit_length() - 1)
