"""Trackers get the curves of a run, through transformers' own callbacks."""

import json
from pathlib import Path
from typing import Any

import pytest

from slideformer.errors import ConfigError
from slideformer.listeners import trackers
from slideformer.listeners.trackers import tracker_callbacks
from slideformer.settings.config import as_config

RUN = {"model": "m", "output_dir": "o", "data": {"path": "d.jsonl"}}


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in TensorBoard's event files below a directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = directory.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_the_curves_of_the_run(run_tiny: Any):
    pytest.importorskip("tensorboard")
    out = run_tiny(report_to="tensorboard", logging_steps=2)
    curves = scalars(out / "runs")
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    norms = [(step["step"], step["grad_norm"]) for step in steps[1::2]]
    assert [step for step, _ in curves["train/loss"]] == [2, 4, 6]
    assert curves["train/grad_norm"] == [(step, pytest.approx(norm)) for step, norm in norms]
    assert {"train/learning_rate", "train/epoch", "train/tokens_per_second", "train/host_peak_bytes"} <= curves.keys()


def test_a_tracker_that_is_not_installed_says_how_to_install_it(run_tiny: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(ConfigError, match="report_to: wandb cannot be used") as refused:
        run_tiny(report_to=["wandb"])
    assert refused.value.hint == "pip install wandb"


def test_an_unknown_tracker_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="report_to: tensorbord") as refused:
        tracker_callbacks(["tensorbord"])
    assert refused.value.hint == "did you mean tensorboard?"


def test_all_is_what_is_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: [])
    assert tracker_callbacks(["all"]) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [("none", []), (None, []), ([], []), ("wandb", ["wandb"]), ("mlflow, trackio", ["mlflow", "trackio"])],
)
def test_how_trackers_are_written(given: Any, expected: list[str]):
    assert as_config({**RUN, "report_to": given}).report_to == expected
