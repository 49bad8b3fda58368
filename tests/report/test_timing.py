"""Where the time went, from whatever the steps measured."""

from pathlib import Path

import pytest
from made_up_runs import write_lines

from slideformer.report.run_data import read_run
from slideformer.report.timing import timing


def test_parts_of_the_step_are_shares_of_its_mean(tmp_path: Path):
    write_lines(
        tmp_path / "metrics.jsonl",
        [
            {"step": 1, "seconds": 3.0, "waiting_seconds": 0.5, "optimizer_seconds": None, "gpu_bytes": 7},
            {"step": 2, "seconds": 1.0, "waiting_seconds": 0.5, "optimizer_seconds": 1.5},
        ],
    )
    write_lines(tmp_path / "evals.jsonl", [{"step": 0, "seconds": 30.0}, {"step": 2, "seconds": 31.0}])
    found = timing(read_run(tmp_path))
    assert found and [(s.name, s.seconds, s.percent) for s in found.shares] == [
        ("optimizer", 1.5, pytest.approx(75)), ("waiting", 0.5, pytest.approx(25)),
    ]  # fmt: skip
    assert found.facts == [("all steps", "0:04"), ("slowest, step 1", "3 s"), ("2 evaluations", "1:01")]


def test_longer_runs_say_what_is_usual(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", ({"step": n, "seconds": n} for n in range(1, 12)))
    found = timing(read_run(tmp_path))
    assert found and dict(found.facts)["a step, median"] == "6 s" and dict(found.facts)["8 of 10 steps"] == "2 to 10 s"


def test_steps_without_a_time(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    assert timing(read_run(tmp_path)) is None


def test_evaluations_whose_seconds_are_no_number_do_not_count(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 3.0}\n')
    (tmp_path / "evals.jsonl").write_text(
        "".join(f'{{"step": 1, "seconds": {value}}}\n' for value in ("NaN", "Infinity", 30, "1e308", "1e308"))
    )
    found = timing(read_run(tmp_path))
    assert found and found.facts[-1] == ("3 evaluations", "?")
