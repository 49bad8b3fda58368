"""Every configuration that a refusal names fits, with rates and without, and much less of what it asks for does not."""

import random
import re
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from made_up_machines import machine
from made_up_plans import model_of, work_of
from made_up_timings import MODEL

from slideformer.errors import DoesNotFit
from slideformer.plan.machine import Machine
from slideformer.plan.pace import Pace, pace_of_full_steps
from slideformer.plan.pins import Pins
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.units import MIB, parse_bytes

SEEDS = range(24)
NEAR = 0.95  # of what is asked for; a few numbers of resident blocks are tried, and sizes are rounded up
SETTINGS = {"max_grad_norm": "clipping"}


@dataclass(frozen=True)
class Wish:
    """A machine and a workload, with budgets as a person writes them."""

    host: int
    gpu: int | None
    disk: int | None = None
    workload: dict[str, Any] = field(default_factory=dict)

    def plan(self, seconds: bool = False) -> Plan:
        load = Workload(**{"batch_size": 32, "max_length": 1024, "clipping": True, **self.workload})
        device = Machine("", self.host, self.gpu).allocatable_bytes(self.gpu)
        pace = pace_for(load) if seconds else None
        sizes = (self.host, device, 500 * MIB, self.disk, pace)
        return make_plan(model_of(), work_of(load.max_length), load, torch.bfloat16, *sizes)

    def refusal(self) -> DoesNotFit | None:
        try:
            self.plan()
        except DoesNotFit as error:
            return error
        return None


def pace_for(load: Workload) -> Pace | None:
    return pace_of_full_steps(MODEL, machine(), load.batch_size, load.max_length, torch.bfloat16, load.clipping)


def drawn(seed: int) -> Wish:
    """A machine with little memory, with a disk or without, steps short or long, perhaps something pinned."""
    r = random.Random(seed)
    host, gpu = int(2 ** r.uniform(9.5, 12.3)) * MIB, int(2 ** r.uniform(9.5, 12.3)) * MIB
    pins = r.choice([
        {}, {}, {"micro_batch_size": 4}, {"window_depth": 12}, {"resident": 0}, {"resident": 9}, {"kept": 8},
        {"micro_batch_size": 4, "kept": 6}, {"pins": Pins(host_boundaries=0)}, {"pins": Pins(host_boundaries=12)},
        {"pins": Pins(resident_ends=True)},
    ])  # fmt: skip
    disk = r.choice([None, 200 * MIB, 700 * MIB, 10**12])
    load = {
        "batch_size": r.choice([4, 32, 200]),
        "max_length": r.choice([256, 1024, 8192]),
        "clipping": r.random() < 0.5,
    }
    return Wish(host, r.choice([gpu, gpu, gpu, None]) if not pins else gpu, disk, load | pins)


@cache
def refused(seed: int) -> tuple[Wish, DoesNotFit | None]:
    wish = drawn(seed)
    return wish, wish.refusal()


def remedies(error: DoesNotFit) -> list[str]:
    head, *lines = error.hint.splitlines()
    return [line.strip() for line in lines] or [head]


def applied(wish: Wish, remedy: str, share: float = 1.0) -> Wish:
    """The wish as somebody changes it who was told so; `share` of the sizes that are named."""
    if leave := re.match(r"leave (.+) to the planner(?:, and )?", remedy):
        wish, remedy = without(wish, leave[1].split(" and ")), remedy[leave.end() :]
    for part in filter(None, remedy.split(" and ")):
        key, _, value = part.partition(": ")
        if key == "budget.offload_dir":
            (room,) = re.findall(r"with (\S+) free", value)
            wish = replace(wish, disk=int(parse_bytes(room) * 0.95 * share))  # what a plan takes of a disk
        elif key.startswith("budget."):
            wish = replace(wish, **{key.removeprefix("budget."): int(parse_bytes(value) * share)})
        else:
            known = {"null": False, "bf16": "bf16"}
            wish = replace(wish, workload=wish.workload | {SETTINGS.get(key, key): known.get(value) or _number(value)})
    return wish


def _number(value: str) -> int | bool:
    return int(value) if value.isdecimal() else False


def without(wish: Wish, names: list[str]) -> Wish:
    pins = wish.workload.get("pins", Pins())
    for name in names:
        pins = replace(pins, **{name: None}) if hasattr(pins, name) else pins
    return replace(wish, workload={k: v for k, v in wish.workload.items() if k not in names} | {"pins": pins})


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_refusal_names_fits_and_much_less_does_not(seed: int):
    wish, error = refused(seed)
    for remedy in remedies(error) if error else []:
        told = applied(wish, remedy)
        for seconds in (False, True):
            found = told.plan(seconds)
            assert found.fits_host and found.fits_device and found.fits_disk, remedy
        if "budget." in remedy:
            assert applied(wish, remedy, NEAR).refusal(), f"{remedy}: {NEAR} of it does"


@pytest.mark.parametrize("seed", SEEDS[::3])
def test_a_batch_that_is_a_tenth_larger_than_named_does_not_fit(seed: int):
    wish, error = refused(seed)
    for remedy in remedies(error) if error else []:
        if found := re.fullmatch(r"batch_size: (\d+)", remedy):
            more = int(found[1]) + max(1, int(found[1]) // 10)
            assert more >= wish.workload["batch_size"] or applied(wish, f"batch_size: {more}").refusal()


def test_disk_and_host_memory_are_both_too_small_for_what_is_pinned():
    wish = Wish(900 * MIB, 4096 * MIB, 100 * MIB, {"pins": Pins(disk_blocks=12), "clipping": False})
    error = wish.refusal()
    assert error is not None and " on disk, which needs " in error.message
    assert all(applied(wish, remedy).plan() for remedy in remedies(error))


def test_every_kind_of_remedy_is_among_them():
    found = [error for _, error in map(refused, SEEDS) if error]
    words = " ".join(remedy for error in found for remedy in remedies(error))
    kinds = ("leave", "batch_size", "max_length", "optimizer_state", "max_grad_norm", "offload_dir", "budget.disk",
             "budget.host", "budget.gpu", "B and budget")  # fmt: skip
    assert len(found) > len(SEEDS) / 2 and [kind for kind in kinds if kind not in words] == []
