"""A run directory is read whatever of it is there; what is damaged is named by file and line."""

import json
import math
from pathlib import Path

import pytest
from made_up_runs import write_lines, write_run

from slideformer.errors import ConfigError, DataError
from slideformer.report.run_data import read_run
from slideformer.storage.lock import locked


def test_a_whole_run(tmp_path: Path):
    run = read_run(write_run(tmp_path / "run", steps=100, done=60, evaluate_every=25))
    assert [step.step for step in run.steps] == list(range(1, 61))
    assert [evaluation.step for evaluation in run.evaluations] == [0, 25, 50]
    assert {sample.step for sample in run.samples} == {0, 30, 60}
    assert run.record and run.record.steps == 100 and run.record.data.sources == ["chat.jsonl", "textbooks.jsonl"]
    assert not run.is_running


def test_metrics_alone_are_a_run(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.5}])
    run = read_run(tmp_path)
    assert run.column("loss") == [2.5] and math.isnan(run.column("grad_norm")[0])
    assert (run.evaluations, run.samples, run.record) == ([], [], None)


def test_a_directory_without_a_run(tmp_path: Path):
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no run: neither metrics.jsonl nor run.json is there"):
        read_run(tmp_path)


def test_a_run_whose_process_lives_is_running(tmp_path: Path):
    write_run(tmp_path, steps=4, done=2)
    with locked(tmp_path):
        assert read_run(tmp_path).is_running
    assert not read_run(tmp_path).is_running


def test_measurements_that_this_version_does_not_know_can_be_read(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "fan_seconds": 3, "note": "warm", "flag": True}])
    run = read_run(tmp_path)
    assert run.column("fan_seconds") == [3.0]
    assert all(map(math.isnan, run.column("note") + run.column("flag") + run.column("absent")))


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity", "-Infinity", "1e999", "1e301", "1" + "0" * 400])
def test_a_value_that_cannot_be_drawn_is_a_gap(tmp_path: Path, value: str):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {value}, "other": {value}}}\n')
    run = read_run(tmp_path)
    assert math.isnan(run.column("loss")[0]) and math.isnan(run.column("other")[0])


def test_a_last_line_cut_short_by_a_kill_is_left_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert [step.step for step in read_run(tmp_path).steps] == [1]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", '{"step": 2, "loss"'),
        ("metrics.jsonl", '{"loss": 2.5}'),
        ("metrics.jsonl", '{"step": "two"}'),
        ("metrics.jsonl", '{"step": 2, "loss": "low"}'),
        ("metrics.jsonl", "3"),
        ("metrics.jsonl", '{"step": 1}'),
        ("evals.jsonl", '{"step": -1}'),
        ("samples.jsonl", '{"step": 2, "prompt": "p"}'),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, name: str, line: str):
    good = {"step": 1, "prompt": "p", "answer": "a"}
    write_lines(tmp_path / "metrics.jsonl", [good])
    write_lines(tmp_path / name, [good])
    with (tmp_path / name).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=f"{name}:2") as refused:
        read_run(tmp_path)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"steps": 3,\n "plan":', "run.json:2 is not JSON"),
        ('{"steps": "many"}', "run.json: steps: "),
        ('{"data": {"lengths": {"edges": [0, 1], "counts": [1, 2]}}}', "data.lengths: .*2 edges do not bound 2 counts"),
        ('{"data": {"lengths": {"edges": [1, 0], "counts": [1]}}}', "edges do not ascend"),
        ("[]", "run.json: "),
        (b"\xff", "run.json is not JSON"),
    ],
)
def test_a_damaged_run_record_is_named(tmp_path: Path, text: str | bytes, message: str):
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_run(tmp_path)


def test_a_run_record_may_lack_everything(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "future": 3}))
    record = read_run(tmp_path).record
    assert record and record.config == {} and record.plan.host_bytes == {} and record.steps is None
