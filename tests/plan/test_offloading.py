"""What goes to disk, and in which order: states, then boundaries, then weights, each only if it has to."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from made_up_machines import machine
from made_up_plans import BLOCKS, plan
from made_up_timings import MODEL

from slideformer.errors import DoesNotFit
from slideformer.plan import planner
from slideformer.plan.offloading import Reach, reaches, ways, what_is_on_disk
from slideformer.plan.pace import Pace, pace_of_full_steps
from slideformer.plan.plan import Plan
from slideformer.plan.table import render
from slideformer.units import GIB, MIB

LONG = {"batch_size": 4, "max_length": 8192, "clipping": False}  # its boundaries take much of host memory
GPU = "2500MiB"


def pace() -> Pace:
    found = pace_of_full_steps(MODEL, machine(), 4, 8192, torch.bfloat16, False)
    assert found is not None
    return found


def plan_of(host_mib: int, paced: Pace | None = None, **others: Any) -> Plan:
    return plan(f"{host_mib}MiB", GPU, "1TiB", paced, **{**LONG, **others})


def sweep(paced: Pace | None, **others: Any) -> list[Plan]:
    """From where all fits in host memory down to where nothing does."""
    found = []
    for mib in range(4300, 0, -100):
        try:
            found.append(plan_of(mib, paced, **others))
        except DoesNotFit:
            return found
    raise AssertionError("everything fits in nothing")


def kinds(chosen: Plan) -> tuple[int, int, int]:
    sizes = chosen.sizes
    return sizes.disk_weight_blocks, sizes.boundaries_on_disk(BLOCKS), sizes.disk_blocks


@pytest.mark.parametrize("paced", [None, pace()], ids=["by preference", "by seconds"])
def test_the_less_host_memory_the_more_is_on_disk_and_weights_last(paced: Pace | None):
    plans = sweep(paced)
    reached = [sum(count > 0 for count in kinds(chosen)) for chosen in plans]
    assert reached == sorted(reached) and set(reached) >= {0, 1, 2, 3}
    for chosen in plans:
        assert chosen.fits_host and chosen.fits_disk and chosen.fits_device
        weights, boundaries, states = kinds(chosen)
        if boundaries or weights:
            assert states == BLOCKS
        if weights:
            assert boundaries == chosen.sizes.boundaries_on_host(BLOCKS) > 0


@pytest.mark.parametrize("paced", [None, pace()], ids=["by preference", "by seconds"])
def test_what_fits_with_less_is_not_changed_by_what_more_would_allow(
    paced: Pace | None, monkeypatch: pytest.MonkeyPatch
):
    plans = sweep(paced)
    for last in (Reach.STATES, Reach.BOUNDARIES):
        monkeypatch.setattr(planner, "reaches", lambda disk, last=last: [r for r in reaches(disk) if r <= last])
        limited = sweep(paced)
        assert [chosen.sizes for chosen in limited] == [chosen.sizes for chosen in plans[: len(limited)]]
        assert len(limited) < len(plans)


def test_each_kind_takes_its_bytes_from_host_memory_to_the_disk():
    least = sweep(None)[-1]
    model, sizes = least.model, least.sizes
    block = model.layouts["layers.0"].numel
    boundary = sizes.micro_batch_tokens * model.hidden * 2 * sizes.micro_batches
    assert least.disk == {
        "optimizer state": BLOCKS * 10 * block,
        "weights": sizes.disk_weight_blocks * 2 * block,
        "activations": sizes.disk_boundaries * boundary,
    }
    left = model.layouts["embedding"].numel + model.layouts["shell"].numel
    in_memory = (BLOCKS - sizes.disk_weight_blocks) * 2 * block
    assert least.host["weights and optimizer state"] == 12 * left + in_memory


def test_the_table_says_what_is_on_disk():
    least = sweep(None)[-1]
    rows = {row[0]: row[1] for row in map(str.split, render(least).splitlines()) if len(row) > 1}
    found = [int(rows[name].split("/")[0]) for name in ("disk_weight_blocks", "disk_boundaries", "disk_blocks")]
    assert tuple(found) == kinds(least)
    words = r"optimizer state of 12 of 12 blocks, boundary activations of \d+ and weights of \d+"
    assert re.fullmatch(words, what_is_on_disk(least)) and what_is_on_disk(plan()) == ""


def test_the_refusal_asks_for_what_the_least_takes():
    with pytest.raises(DoesNotFit) as caught:
        plan_of(300)
    wanted = re.search(r"budget.host: (\S+)$", caught.value.hint, re.MULTILINE)
    assert wanted is not None and plan(wanted[1], GPU, "1TiB", **LONG)
    with pytest.raises(DoesNotFit) as caught:
        plan("1500MiB", GPU, None, **LONG)
    offered = re.search(
        r"^\s*budget.offload_dir: a directory on a fast local disk with (\S+) free", caught.value.hint, re.M
    )
    assert offered is not None and plan("1500MiB", GPU, offered[1], **LONG)


def test_a_disk_that_is_too_small_for_it_is_named():
    with pytest.raises(
        DoesNotFit, match=r"optimizer state of 12 of 12 blocks, boundary .* on disk, which needs"
    ) as caught:
        plan("1500MiB", GPU, "1GiB", **LONG)
    wanted = re.search(r"budget.disk: (\S+)$", caught.value.hint, re.MULTILINE)
    assert wanted is not None and plan("1500MiB", GPU, wanted[1], **LONG)


def test_ways_begin_with_one_more_than_the_kind_before():
    sizes = replace(plan().sizes, host_boundaries=2)
    assert ways(sizes, 3, Reach.NOTHING) == [sizes]
    assert [way.disk_blocks for way in ways(sizes, 3, Reach.STATES)] == [1, 2, 3]
    assert [(w.disk_blocks, w.disk_boundaries) for w in ways(sizes, 3, Reach.BOUNDARIES)] == [(3, 1), (3, 2)]
    assert [(w.disk_boundaries, w.disk_weight_blocks) for w in ways(sizes, 3, Reach.WEIGHTS)] == [
        (2, 1),
        (2, 2),
        (2, 3),
    ]
    assert reaches(None) == [Reach.NOTHING] and Reach.NOTHING not in reaches(GIB) and MIB
