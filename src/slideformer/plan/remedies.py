"""The closest configurations that fit, each of them tried."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from slideformer.plan.edges import last
from slideformer.plan.feasible import Asked, Possible
from slideformer.plan.machine import DEVICE_MARGIN, DISK_MARGIN
from slideformer.plan.pin_check import pinned
from slideformer.plan.plan import Plan
from slideformer.units import MIB, TIB, size_that_holds

BOUNDLESS = 1024 * TIB
NEAR = 256  # the least budget is found within one part in so many, or to a MiB
LENGTH_STEP, SHORTEST = 64, 4  # records cut to less than a quarter are others
SAVING: dict[str, dict[str, Any]] = {
    "optimizer_state: bf16": {"optimizer_state": "bf16"}, "max_grad_norm: null": {"clipping": False},
}  # fmt: skip


@dataclass(frozen=True)
class Remedy:
    """A change after which the plan fits.

    Attributes:
        words: the settings, as one writes them.
        asked: what is then asked.
    """

    words: str
    asked: Asked


def remedies(asked: Asked, possible: Possible) -> list[Remedy]:
    """From what costs nothing to what costs money; where no single change does, several budgets.

    Where it is not enough to leave to the planner what was pinned, but asks for less, that comes before other changes.
    """
    given, found = tuple(pinned(asked.workload)), list(_unpinned(asked, possible))
    if found or not given or not _asks_for_less(free := _without(asked, given), asked, possible):
        return [*found, *_changes(asked, possible)]
    return [replace(r, words=f"{_leave(given)}, and {r.words}") for r in _changes(free, possible)]


def _asks_for_less(other: Asked, asked: Asked, possible: Possible) -> bool:
    """Of the tier that is short."""
    tier, plan = shortage(asked, possible)
    beside = _boundless_beside(other, tier) if least(other, tier, possible) is None else other
    less = least(beside, tier, possible)
    return less is not None and peak_bytes(less, tier) < 0.95 * peak_bytes(plan, tier)


def shortage(asked: Asked, possible: Possible) -> tuple[str, Plan]:
    """The tier that is short whatever the others hold, and a plan with the least of it; if more of either the disk or
    host memory is enough, the disk."""
    for tier in ("device", "disk"):
        wide = _boundless_beside(asked, tier)
        if getattr(asked, tier) is not None and possible(wide) is None:
            plan = least(wide, tier, possible)
            assert plan is not None
            return tier, plan
    if asked.disk is not None and (plan := least(asked, "disk", possible)) is not None:
        return "disk", plan
    plan = least(asked, "host", possible)
    assert plan is not None
    return "host", plan


def _boundless_beside(asked: Asked, tier: str) -> Asked:
    """Host memory, and for the device also the disk, if there is one."""
    disk = BOUNDLESS if tier == "device" and asked.disk is not None else asked.disk
    return replace(asked, host=BOUNDLESS, disk=disk)


def _changes(asked: Asked, possible: Possible) -> Iterator[Remedy]:
    yield from _saving_host_memory(asked, possible)
    yield from _smaller_batch(asked, possible)
    yield from _shorter(asked, possible)
    yield from _more_memory(asked, possible)
    yield from _several_budgets(asked, possible)


def least(asked: Asked, tier: str, possible: Possible) -> Plan | None:
    """A plan with about the smallest budget of `tier` ("host", "device" or "disk") that is enough; None if none is."""

    def within(size: int) -> Plan | None:
        return possible(replace(asked, **{tier: size}))

    if within(BOUNDLESS) is None:
        return None
    low, high = 0, max(getattr(asked, tier) or 0, 64 * MIB)
    while (found := within(high)) is None:
        low, high = high, 2 * high
    while high - low > max(MIB, high // NEAR):
        middle = (low + high) // 2
        low, high, found = (middle, high, found) if (other := within(middle)) is None else (low, middle, other)
    return found


def _unpinned(asked: Asked, possible: Possible) -> Iterator[Remedy]:
    """The fewest pins to take out."""
    given = list(pinned(asked.workload))
    for count in range(1, len(given) + 1):
        tried = [Remedy(_leave(names), _without(asked, names)) for names in combinations(given, count)]
        if found := [remedy for remedy in tried if possible(remedy.asked)]:
            yield from found
            return


def _leave(names: tuple[str, ...]) -> str:
    return f"leave {' and '.join(names)} to the planner"


def _without(asked: Asked, names: tuple[str, ...]) -> Asked:
    of_pins = {name: None for name in names if name in vars(asked.workload.pins)}
    others: dict[str, Any] = {name: None for name in names if name not in of_pins}
    pins = replace(asked.workload.pins, **of_pins) if of_pins else asked.workload.pins
    return replace(asked, workload=replace(asked.workload, pins=pins, **others))


def _saving_host_memory(asked: Asked, possible: Possible) -> Iterator[Remedy]:
    """Without clipping, with small moments, with a disk beside; with both if neither is enough."""
    for count in (1, 2):
        tried = [Remedy(" and ".join(words), _changed(asked, words)) for words in combinations(SAVING, count)]
        if found := [remedy for remedy in tried if possible(remedy.asked)]:
            yield from found
            return
    if least(asked, "disk", possible) is not None:
        return  # a disk alone is enough, and named with the other budgets
    for count in (1, 2):
        tried = [Remedy(" and ".join(words), _changed(asked, words)) for words in combinations(SAVING, count)]
        if found := [remedy for first in tried for remedy in _more_of("disk", first.asked, possible, first.words)]:
            yield from found
            return


def _changed(asked: Asked, words: tuple[str, ...]) -> Asked:
    changes = {key: value for word in words for key, value in SAVING[word].items()}
    return replace(asked, workload=replace(asked.workload, **changes))


def _smaller_batch(asked: Asked, possible: Possible) -> Iterator[Remedy]:
    """Fewer sequences a step: fewer boundary activations, and rows of the embedding."""

    def of(batch_size: int) -> Asked:
        return replace(asked, workload=replace(asked.workload, batch_size=batch_size))

    smallest = asked.workload.micro_batch_size or 1
    most = last(range(smallest, asked.workload.batch_size), lambda size: possible(of(size)) is not None)
    if most is not None:
        yield Remedy(f"batch_size: {most}", of(most))


def _shorter(asked: Asked, possible: Possible) -> Iterator[Remedy]:
    """What computation needs is taken to shrink with the length, less a little, since not all of it does."""

    def of(length: int) -> Asked:
        return replace(asked, workload=replace(asked.workload, max_length=length))

    longest = asked.workload.max_length
    steps = range(max(LENGTH_STEP, longest // SHORTEST // LENGTH_STEP * LENGTH_STEP), longest, LENGTH_STEP)
    most = last(steps, lambda length: possible(of(length)) is not None)
    if most is not None:
        yield Remedy(f"max_length: {most}", of(most))


def _more_memory(asked: Asked, possible: Possible) -> Iterator[Remedy]:
    """More of one tier."""
    for tier in WORDS:
        if tier != "device" or asked.device is not None:
            yield from _more_of(tier, asked, possible)


def _more_of(tier: str, asked: Asked, possible: Possible, beside: str = "") -> Iterator[Remedy]:
    if (plan := least(asked, tier, possible)) is not None:
        absent = tier == "disk" and asked.disk is None
        words = _directory_words(plan) if absent else WORDS[tier](plan)
        first = f"{beside} and " if beside else ""
        yield Remedy(first + words, replace(asked, **{tier: peak_bytes(plan, tier)}))


def _directory_words(plan: Plan) -> str:
    room = size_that_holds(int(plan.disk_peak_bytes / (1 - DISK_MARGIN)) + 1)
    return f"budget.offload_dir: a directory on a fast local disk with {room} free"


def _several_budgets(asked: Asked, possible: Possible) -> Iterator[Remedy]:
    """Where more than one tier is short, as they are and with a disk if there is none."""
    for tiers in (("disk", "device", "host"), ("device", "host", "disk")):
        present = [tier for tier in tiers if getattr(asked, tier) is not None or tier == tiers[-1]]
        words, changed = _least_in_turn(asked, present, possible)
        if len(words) > 1:
            yield Remedy(" and ".join(words), changed)
        if asked.disk is not None:
            return


def _least_in_turn(asked: Asked, tiers: list[str], possible: Possible) -> tuple[list[str], Asked]:
    """Of each tier what is given or, if need be, the least that does beside as much as one likes of those behind it."""
    wide, words = replace(asked, **dict.fromkeys(tiers, BOUNDLESS)), []
    for tier in tiers:
        given = getattr(asked, tier)
        narrow = replace(wide, **{tier: 0 if given is None else given})
        if possible(narrow) is None:
            if (plan := least(wide, tier, possible)) is None:
                return [], asked
            narrow = replace(wide, **{tier: peak_bytes(plan, tier)})
            words.append(_directory_words(plan) if given is None else WORDS[tier](plan))
        wide = narrow
    return words, wide


def peak_bytes(plan: Plan, tier: str) -> int:
    """What the plan takes of "host", "device" or "disk"."""
    return getattr(plan, f"{tier}_peak_bytes")


def _host_words(plan: Plan) -> str:
    return f"budget.host: {size_that_holds(plan.host_peak_bytes)}"


def _device_words(plan: Plan) -> str:
    return f"budget.gpu: {gpu_budget_for(plan.device_peak_bytes)}"


def gpu_budget_for(size_bytes: int) -> str:
    """The budget of which, less the margin for fragments, so much is left."""
    return size_that_holds(int(size_bytes / (1 - DEVICE_MARGIN)) + 1)


def _disk_words(plan: Plan) -> str:
    return f"budget.disk: {size_that_holds(plan.disk_peak_bytes)}"


WORDS = {"disk": _disk_words, "device": _device_words, "host": _host_words}
