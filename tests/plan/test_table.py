"""The table names every tier's buffers, their sum and the budget."""

from dataclasses import replace
from typing import Any

import pytest
from made_up_plans import plan
from made_up_timings import timing

from slideformer.plan.pins import Pins
from slideformer.plan.table import NO_DISK_RATES, render
from slideformer.settings.config import Config
from slideformer.units import format_bytes


def test_both_tiers_are_listed_with_totals_and_budgets():
    chosen = plan(host="64GiB", gpu="64GiB")
    text = render(chosen)
    assert text.splitlines()[0] == ("plan: 0.184B parameters in 12 blocks; 4 x 8 sequences of up to 1024 tokens a step")
    for name, size in chosen.host.items():
        assert not size or (name in text and format_bytes(size) in text)
    assert f"{format_bytes(chosen.host_peak_bytes)}  64.0 GiB" in text
    assert f"{format_bytes(chosen.device_peak_bytes)}  64.0 GiB" in text
    assert max(map(len, text.splitlines()[1:])) <= 100 and all(line == line.rstrip() for line in text.splitlines())


def test_the_disk_is_a_tier_where_there_is_one():
    chosen = plan(host="2500MiB", disk="64GiB")
    text = render(chosen)
    assert choices(text)["disk_blocks"] == f"{chosen.sizes.disk_blocks}/12" and chosen.sizes.disk_blocks
    assert f"{format_bytes(chosen.disk_peak_bytes)}  64.0 GiB" in text and "disk buffers" in text
    assert "disk" not in render(plan())


def test_the_cpu_has_one_tier():
    text = render(plan(gpu=None))
    assert "GPU" not in text and "computation" in text


def choices(text: str) -> dict[str, str]:
    lines = text.splitlines()
    rows = lines[lines.index(next(line for line in lines if line.startswith("setting "))) + 1 : lines.index("")]
    return {row.split()[0]: row.split()[1] for row in rows}


@pytest.mark.parametrize("pins", [{}, {"kept_outputs": 2, "host_boundaries": 5}, {"gradient_slots": 3}])
def test_choices_are_listed_by_the_names_that_pin_them(pins: dict[str, Any]):
    asked = {"clipping": False, "resident": 2, "kept": 1, "disk": "64GiB"}
    chosen = plan(**asked, pins=Pins(**pins))
    found = choices(render(chosen))
    assert set(found) <= set(Config.model_fields) and found["resident"] == "2/12" and found["window_depth"] == "3"
    assert all(found[name].split("/")[0] == str(value) for name, value in pins.items())
    names = ("kept_outputs", "host_boundaries", "disk_blocks", "gradient_slots")
    again: dict[str, Any] = {name: int(found[name].split("/")[0]) for name in names}
    assert plan(**asked, pins=Pins(**again)).sizes == chosen.sizes


def test_what_cannot_be_chosen_is_not_listed():
    on_cpu, clipped = choices(render(plan(gpu=None, clipping=False))), choices(render(plan()))
    assert not {"resident", "resident_ends", "host_boundaries", "disk_blocks"} & set(on_cpu)
    assert "gradient_slots" in on_cpu and "gradient_slots" not in clipped and "head_shards" not in clipped


def test_seconds_without_a_disk_s_rates_say_so():
    measured = replace(plan(host="2500MiB", disk="64GiB"), timing=timing())
    assert NO_DISK_RATES in render(measured)
    assert NO_DISK_RATES not in render(replace(plan(), timing=timing()))


@pytest.mark.parametrize("phase", ["backward", "head and loss"])
def test_the_fuller_phase_is_shown(phase: str, monkeypatch: pytest.MonkeyPatch):
    chosen = plan()
    for name in chosen.device:
        chosen.device[name]["activations"] += 10**11 * (name == phase)
    assert f"GPU, {phase}" in render(chosen)
