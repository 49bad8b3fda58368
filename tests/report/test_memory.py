"""Tiers: the plan's parts beside what was measured and what was allowed."""

import json
from pathlib import Path

import pytest
from made_up_plans import plan
from made_up_runs import write_lines, write_run

from slideformer.report.memory import tiers
from slideformer.report.run_data import read_run
from slideformer.units import GIB


def test_parts_peaks_and_budgets_are_those_of_the_plan(tmp_path: Path):
    gpu, host = tiers(read_run(write_run(tmp_path, steps=3)))
    made = plan(gpu="8GiB", host="4GiB")
    assert (gpu.planned_bytes, gpu.budget_bytes) == (made.device_peak_bytes, 8 * GIB)
    assert (host.planned_bytes, host.budget_bytes) == (made.host_peak_bytes, 4 * GIB)
    assert gpu.phases == ["head and loss", "backward"] and dict(gpu.parts)["block"][0] == 0
    assert {name: sizes[0] for name, sizes in host.parts} == {k: v for k, v in made.host.items() if v}
    assert gpu.deviation == "1.5% below the plan" and host.deviation == "1.1% above the plan"


def test_segments_fill_the_planned_peak_without_overlap(tmp_path: Path):
    for tier in tiers(read_run(write_run(tmp_path, steps=3))):
        end = 0.0
        for segment in tier.segments:
            assert segment.start == pytest.approx(end)
            end += segment.length
        assert end == pytest.approx(tier.percent(tier.planned_bytes or 0)) and end <= 100


def test_without_a_plan_only_the_peaks_are_known(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "gpu_peak_bytes": 5, "host_peak_bytes": 7}])
    gpu, host = tiers(read_run(tmp_path))
    assert (gpu.measured_bytes, gpu.planned_bytes, gpu.budget_bytes, gpu.parts) == (5, None, None, [])
    assert (host.measured_bytes, host.deviation) == (7, "")


def test_a_run_on_the_cpu_has_one_tier(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "gpu_peak_bytes": 0, "host_peak_bytes": 7}])
    (tmp_path / "run.json").write_text(json.dumps({"plan": plan(gpu=None).as_json()}))
    (host,) = tiers(read_run(tmp_path))
    assert host.name == "Host" and "computation" in dict(host.parts)


def test_a_plan_without_bytes_is_no_tier(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"plan": {"host_bytes": {"total": 0, "gradients": 0}}}))
    assert tiers(read_run(tmp_path)) == []


def test_before_the_first_step_only_the_plan_is_known(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"plan": plan().as_json()}))
    assert [(tier.name, tier.measured_bytes) for tier in tiers(read_run(tmp_path))] == [("GPU", None), ("Host", None)]


def test_the_disk_is_a_tier_where_something_is_there(tmp_path: Path):
    made = plan(host="2500MiB", disk="64GiB")
    assert made.disk_peak_bytes > 0
    (tmp_path / "run.json").write_text(json.dumps({"plan": made.as_json()}))
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "host_peak_bytes": 7}])
    *_, disk = tiers(read_run(tmp_path))
    assert (disk.name, disk.planned_bytes, disk.budget_bytes) == ("Disk", made.disk_peak_bytes, 64 * GIB)
    assert dict(disk.parts) == {"optimizer state": [made.disk_peak_bytes]}
