"""The step record on disk, and the peak of host memory."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from slideformer.errors import DataError
from slideformer.metrics import MetricsLog, StepStats, read_metrics
from slideformer.units import MIB

STEP = StepStats(
    step=1,
    loss=2.5,
    grad_norm=1.25,
    learning_rate=1e-5,
    tokens=4096,
    trained_tokens=1000,
    seconds=0.5,
    tokens_per_second=8192.0,
    gpu_peak_bytes=0,
    host_peak_bytes=10**9,
)


def steps(*numbers: int) -> list[StepStats]:
    return [replace(STEP, step=number) for number in numbers]


def test_each_step_is_one_json_line_on_disk_at_once(tmp_path: Path):
    path = tmp_path / "out" / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(STEP)
    assert json.loads(path.read_text()) == asdict(STEP)  # before close: a killed run keeps it
    log.write(replace(STEP, step=2))
    log.close()
    assert read_metrics(path) == steps(1, 2)


def test_a_new_run_starts_afresh_and_a_resumed_one_continues(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for stats in steps(1, 2, 3, 4):
            log.write(stats)
    with MetricsLog(path, resume_step=2) as log:
        log.write(replace(STEP, step=3))
    assert read_metrics(path) == steps(1, 2, 3)
    MetricsLog(path).close()
    assert read_metrics(path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for stats in steps(1, 2):
            log.write(stats)
    path.write_text(path.read_text()[:-20])
    assert read_metrics(path) == steps(1)


def test_a_value_that_is_not_finite_is_still_json(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(replace(STEP, loss=math.nan))
    assert json.loads(path.read_text())["loss"] is None
    assert math.isnan(read_metrics(path)[0].loss)


@pytest.mark.parametrize("line", ["{broken\n", '{"step": 1}\n', "3\n"])
def test_a_foreign_line_names_file_and_line(tmp_path: Path, line: str):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(STEP)
    path.write_text(path.read_text() + line)
    with pytest.raises(DataError, match="metrics.jsonl:2"):
        read_metrics(path)


def test_host_peak_remembers_what_was_freed():
    script = """
from slideformer.metrics import host_peak_bytes
before = host_peak_bytes()
block = bytearray(b"x") * 2**26
del block
print(host_peak_bytes() - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert 60 * MIB < grown < 70 * MIB
