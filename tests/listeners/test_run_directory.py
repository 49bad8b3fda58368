"""What a run writes of itself: whole lines at once, and what is taken up again when it continues."""

import json
import math
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from slideformer.errors import DataError
from slideformer.listeners.metrics import EvalStats, RunRecord, Sample, StepStats
from slideformer.listeners.run_directory import RecordLog, RunDirectory, read_log, read_metrics

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
    log = RecordLog(path, StepStats)
    log.write(STEP)
    assert json.loads(path.read_text()) == asdict(STEP)  # before close: a killed run keeps it
    log.write(replace(STEP, step=2))
    log.close()
    assert read_metrics(path) == steps(1, 2)


def test_a_new_run_starts_afresh_and_a_resumed_one_continues(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with closing(RecordLog(path, StepStats)) as log:
        for stats in steps(1, 2, 3, 4):
            log.write(stats)
    with closing(RecordLog(path, StepStats, last_step=2)) as log:
        log.write(replace(STEP, step=3))
    assert read_metrics(path) == steps(1, 2, 3)
    RecordLog(path, StepStats).close()
    assert read_metrics(path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_steps_of_an_older_run_lack_what_it_did_not_measure(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    older = {name: value for name, value in asdict(STEP).items() if not name.startswith(("epoch", "h2d", "optimizer"))}
    path.write_text(json.dumps(older) + "\n")
    assert read_metrics(path) == [STEP]
    path.write_text(json.dumps({name: value for name, value in older.items() if name != "loss"}) + "\n")
    with pytest.raises(DataError, match="not a StepStats record"):
        read_metrics(path)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with closing(RecordLog(path, StepStats)) as log:
        for stats in steps(1, 2):
            log.write(stats)
    path.write_text(path.read_text()[:-20])
    assert read_metrics(path) == steps(1)


def test_a_value_that_is_not_finite_is_still_json(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with closing(RecordLog(path, StepStats)) as log:
        log.write(replace(STEP, loss=math.nan))
    assert json.loads(path.read_text())["loss"] is None
    assert math.isnan(read_metrics(path)[0].loss)


@pytest.mark.parametrize("line", ["{broken\n", '{"step": 1}\n', "3\n"])
def test_a_foreign_line_names_file_and_line(tmp_path: Path, line: str):
    path = tmp_path / "metrics.jsonl"
    with closing(RecordLog(path, StepStats)) as log:
        log.write(STEP)
    path.write_text(path.read_text() + line)
    with pytest.raises(DataError, match="metrics.jsonl:2"):
        read_metrics(path)


RUN = RunRecord("2026-01-01T00:00:00+00:00", {"seed": 7}, {}, {}, {}, {}, {}, steps=4)


def test_a_continued_run_keeps_what_was_before_it_in_every_file(tmp_path: Path):
    evals = [EvalStats(step, 2.0, 7.4, 100, 0.1) for step in (0, 2, 4)]
    samples = [Sample(step, "a prompt", "an answer") for step in (0, 2, 4)]
    for last, first_new in ((None, 0), (2, 2)):
        directory = RunDirectory(tmp_path, last)
        directory.began(RUN, last or 0)
        for stats in steps(1, 2, 3, 4)[first_new:]:
            directory.stepped(stats)
        for k in range(2 if last else 0, 3):
            directory.evaluated(evals[k])
            directory.sampled([samples[k]])
        directory.ended()
        assert read_metrics(tmp_path / "metrics.jsonl") == steps(1, 2, 3, 4)
        assert read_log(tmp_path / "evals.jsonl", EvalStats) == evals
        assert read_log(tmp_path / "samples.jsonl", Sample) == samples
    assert json.loads((tmp_path / "run.json").read_text())["config"] == {"seed": 7}
