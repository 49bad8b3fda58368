"""What is pinned stays, with rates and without; what no budget makes possible is refused at once, and what does not fit
with its numbers."""

from typing import Any

import pytest
import torch
from made_up_machines import machine
from made_up_plans import BLOCKS, plan
from made_up_timings import MODEL

from slideformer.errors import ConfigError, DoesNotFit
from slideformer.plan.pace import Pace, pace_of_full_steps
from slideformer.plan.pin_check import pinned
from slideformer.plan.pins import Pins
from slideformer.plan.plan import Plan, Workload
from slideformer.settings.config import Config

PACE = pace_of_full_steps(MODEL, machine(), 32, 1024, torch.bfloat16, False)


def pinned_plan(pace: Pace | None, gpu: str | None = "8GiB", disk: str | None = "1TiB", **pins: Any) -> Plan:
    return plan(gpu=gpu, disk=disk, clipping=False, resident=None, pace=pace, pins=Pins(**pins))


@pytest.mark.parametrize("pace", [None, PACE], ids=["without rates", "with rates"])
@pytest.mark.parametrize(
    "pins",
    [
        {"resident_ends": True},
        {"resident_ends": False},
        {"kept_outputs": 3},
        {"kept_outputs": 0},
        {"host_outputs": 5},
        {"host_boundaries": 0},
        {"host_boundaries": 7},
        {"disk_blocks": 0},
        {"disk_blocks": 5},
        {"host_boundaries": 6, "disk_boundaries": 4},
        {"disk_blocks": 5, "disk_weight_blocks": 3},
        {"gradient_slots": 4},
        {"host_boundaries": 5, "disk_blocks": 2, "kept_outputs": 1, "resident_ends": True},
    ],
    ids=str,
)
def test_what_is_pinned_stays(pins: dict[str, Any], pace: Pace | None):
    chosen = pinned_plan(pace, **pins)
    assert {name: getattr(chosen.sizes, name) for name in pins} == pins
    assert chosen.fits_device and chosen.fits_host and chosen.fits_disk


def test_of_blocks_there_are_at_most_all():
    assert pinned_plan(None, host_boundaries=99).sizes.host_boundaries == BLOCKS


@pytest.mark.parametrize("pace", [None, PACE], ids=["without rates", "with rates"])
@pytest.mark.parametrize(
    ("pins", "memory", "message"),
    [
        ({"host_boundaries": 0}, {"gpu": "1GiB"}, "the GPU needs .*, and its budget is 1.0 GiB"),
        ({"resident_ends": True}, {"gpu": "1GiB"}, "the GPU needs .* resident states"),
        ({"disk_blocks": BLOCKS}, {"disk": "1GiB"}, "12 of 12 blocks.* on disk, .* budget is 1.0 GiB"),
    ],
)
def test_a_pin_that_does_not_fit_is_refused_with_its_numbers(
    pins: dict[str, Any], memory: dict[str, str], message: str, pace: Pace | None
):
    with pytest.raises(DoesNotFit, match=message) as caught:
        pinned_plan(pace, **memory, **pins)
    assert f"leave {next(iter(pins))} to the planner" in caught.value.hint
    assert pinned_plan(pace, **memory)


@pytest.mark.parametrize(
    ("pins", "given", "message"),
    [
        ({"resident_ends": True}, {"gpu": None}, "resident_ends: true, but only what computes in bf16 on a GPU"),
        ({"disk_blocks": 2}, {"disk": None}, "disk_blocks: 2, but there is no disk"),
        ({"gradient_slots": 2}, {"clipping": True}, "gradient_slots: 2, but with clipping all gradients wait"),
        ({"disk_blocks": 5}, {"resident": 9}, "resident: 9 and disk_blocks: 5 are more than the 12 blocks"),
        ({"kept_outputs": 2}, {"recompute_all": True}, "kept_outputs: 2, but gradient_checkpointing"),
        ({"head_shards": 2}, {}, "head_shards: 2, but a shard of this head"),
    ],
)
def test_what_no_budget_makes_possible(pins: dict[str, Any], given: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        plan(**{"disk": "1TiB", "clipping": False, "resident": None, **given, "pins": Pins(**pins)})


def test_every_pin_is_a_setting_of_that_name():
    everything = Workload(1, 1, True, 1, 2, resident=1, kept=1, pins=Pins(True, 1, 1, 1, 1, 1, 1, 1))
    assert len(pinned(everything)) == 12 and set(pinned(everything)) <= set(Config.model_fields)
    assert all(Config.model_fields[name].default is None for name in pinned(everything))
    assert pinned(Workload(1, 1, True, resident=0)) == {"resident": 0}
