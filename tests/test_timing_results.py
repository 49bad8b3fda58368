"""Predicted steps are near those that an H200 measured."""

import pytest
import timing as benchmark

RECORDED = list(benchmark.recorded())


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row.case)
def test_a_recorded_step_is_predicted_within_15_percent(row: benchmark.Row):
    assert abs(row.deviation) < 0.15


def test_small_steps_are_bound_by_the_cpu_and_large_ones_by_the_gpu():
    bounds = {row.case: row.timing.bound for row in RECORDED}
    assert bounds["qwen3-4b 8 x 1024"] == "adamw" and bounds["qwen3-4b 32 x 1024"] == "compute"
