"""The head says which run it is, how far it came, and what it came to."""

import json
from pathlib import Path

import pytest
from made_up_runs import MODEL, write_lines, write_run

from slideformer.report.memory import tiers
from slideformer.report.run_data import read_run
from slideformer.report.summary import figures, heading
from slideformer.storage.lock import locked


@pytest.mark.parametrize(
    ("done", "state", "status"),
    [
        (100, "finished", "finished, 100 steps"),
        (40, "stopped", "stopped after 40 of 100 steps"),
        (0, "stopped", "stopped after 0 of 100 steps"),
    ],
)
def test_how_far_a_run_came(tmp_path: Path, done: int, state: str, status: str):
    head = heading(read_run(write_run(tmp_path, steps=100, done=done)))
    assert (head.state, head.status, head.percent) == (state, status, done)


def test_a_run_in_progress(tmp_path: Path):
    write_run(tmp_path, steps=100, done=40)
    with locked(tmp_path):
        assert heading(read_run(tmp_path)).status == "running, 40 of 100 steps done"


def test_which_run_it_is(tmp_path: Path):
    head = heading(read_run(write_run(tmp_path / "mine", steps=3)))
    assert head.title == MODEL
    assert head.about == [
        "MadeUpForCausalLM", "184M parameters, all trained", "started 24 November 2026, 09:30 UTC", "in mine",
    ]  # fmt: skip


def test_a_path_is_no_title_but_its_last_part_is(tmp_path: Path):
    model = {"parameters": 2_000_000_000, "trained_parameters": 500_000_000}
    record = {"config": {"model": "somebody/Small-2B"}, "started": "soon", "model": model}
    (tmp_path / "run.json").write_text(json.dumps(record))
    head = heading(read_run(tmp_path))
    assert head.title == "Small-2B"
    assert head.about[:2] == ["2B parameters, 500M of them trained", "started soon"]


def test_an_old_run_is_named_by_its_directory(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1}, {"step": 2}])
    head = heading(read_run(tmp_path))
    assert (head.title, head.about, head.state, head.status) == (tmp_path.name, [], "unknown", "2 steps")


def test_figures(tmp_path: Path):
    steps = [
        {"step": n, "loss": 3.0 - n, "tokens": 1000, "trained_tokens": 250, "seconds": 2.0, "tokens_per_second": 500.0}
        for n in (1, 2)
    ]
    write_lines(tmp_path / "metrics.jsonl", steps)
    write_lines(tmp_path / "evals.jsonl", [{"step": 0, "loss": 2.75}, {"step": 2, "loss": 1.5}])
    run = read_run(tmp_path)
    assert [(figure.label, figure.value, figure.note) for figure in figures(run, tiers(run))] == [
        ("Training loss", "1", "from 2"),
        ("Held-out loss", "1.5", "from 2.75"),
        ("Throughput", "500", "tokens a second, median"),
        ("Tokens", "2k", "25% of them trained"),
        ("Time", "0:04", "2 s a step, median"),
    ]
