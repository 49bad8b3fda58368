"""The table names every tier's buffers, their sum and the budget."""

import pytest
from made_up_plans import plan

from slideformer.plan.table import render
from slideformer.units import format_bytes


def test_both_tiers_are_listed_with_totals_and_budgets():
    chosen = plan(host="64GiB", gpu="64GiB")
    text = render(chosen)
    assert text.splitlines()[0] == (
        "plan: 0.184B parameters in 12 blocks, 3 in the window; 4 x 8 sequences of up to 1024 tokens a step; "
        "12 of 12 boundary activations stay on the device; no blocks are recomputed"
    )
    for name, size in chosen.host.items():
        assert not size or (name in text and format_bytes(size) in text)
    assert f"{format_bytes(chosen.host_peak_bytes)}  64.0 GiB" in text
    assert f"{format_bytes(chosen.device_peak_bytes)}  64.0 GiB" in text
    assert max(map(len, text.splitlines()[1:])) <= 100 and all(line == line.rstrip() for line in text.splitlines())


def test_the_disk_is_a_tier_where_there_is_one():
    chosen = plan(host="2500MiB", disk="64GiB")
    text = render(chosen)
    assert f"on disk: optimizer state of {chosen.sizes.disk_blocks} of {len(chosen.model.blocks)} blocks" in " ".join(
        text.split()
    )
    assert f"{format_bytes(chosen.disk_peak_bytes)}  64.0 GiB" in text and "disk buffers" in text
    assert "disk" not in render(plan())


def test_the_cpu_has_one_tier():
    text = render(plan(gpu=None))
    assert "GPU" not in text and "computation" in text


@pytest.mark.parametrize("phase", ["backward", "head and loss"])
def test_the_fuller_phase_is_shown(phase: str, monkeypatch: pytest.MonkeyPatch):
    chosen = plan()
    for name in chosen.device:
        chosen.device[name]["activations"] += 10**11 * (name == phase)
    assert f"GPU, {phase}" in render(chosen)
