"""Runs in which a batch is broken: left out, told, counted, and ended when it does not stop."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from tiny_runs import Record, make_records, read_run, write_config, write_records

from slideformer.cli import main
from slideformer.errors import NonFinite
from slideformer.listeners.metrics import StepStats
from slideformer.run.skipped_steps import SkippedSteps

GOOD = [{name: [4 if t == 3 else t for t in values] for name, values in r.items()} for r in make_records(12)]
BROKEN: Record = {"input_ids": [3, 5, 6, 7], "labels": [-100, 5, 6, 7]}
STATS = StepStats(1, 2.0, 1.0, 1e-3, 10, 10, 1.0, 10.0, 0, 1)
SETTINGS: dict[str, Any] = {
    "batch_size": 2, "max_length": 24, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "num_train_epochs": 1,
    "on_non_finite": "skip",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which token 3 is infinite, so that a batch with it is not finite and others are."""
    directory = save_tiny_model(tmp_path_factory.mktemp("model"), "llama")
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][3, 0] = math.inf
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def start(directory: Path, model: Path, records: list[Record], **settings: Any) -> int:
    directory.mkdir(exist_ok=True)
    data = write_records(directory / "data.jsonl", records)
    return main(
        ["train", str(write_config(directory / "run.yaml", model, data, directory / "out", **SETTINGS, **settings))]
    )


def test_a_broken_batch_is_left_out_told_and_recorded(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert start(tmp_path / "with", model, [*GOOD[:4], BROKEN, GOOD[4], *GOOD[6:]]) == 0
    out = capsys.readouterr().out
    assert "step 3 left out (1 so far): not finite is the gradient of head, model.layers.2, 4 more" in out
    assert "1 steps were left out because their gradient was not finite" in out
    lines = (tmp_path / "with/out/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [bool(step["non_finite"]) for step in steps] == [False, False, True, False, False, False]
    assert steps[2]["loss"] is None and steps[2]["grad_norm"] is None
    assert start(tmp_path / "without", model, [*GOOD[:4], *GOOD[6:]]) == 0
    one, other = read_run(tmp_path / "with/out"), read_run(tmp_path / "without/out")
    assert [loss for loss in one.losses if loss is not None] == other.losses
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_a_run_continues_behind_a_skipped_step_as_if_it_had_not_been_interrupted(model: Path, tmp_path: Path):
    records = [GOOD[0], GOOD[1], BROKEN, GOOD[2], *GOOD[4:]]
    assert start(tmp_path / "whole", model, records) == 0
    assert start(tmp_path / "parts", model, records, save_steps=2, max_steps=3) == 0
    resume = {"resume_from_checkpoint": "auto"}
    assert start(tmp_path / "parts", model, records, **resume) == 0
    whole, parts = read_run(tmp_path / "whole/out"), read_run(tmp_path / "parts/out")
    assert all(torch.equal(value, parts.weights[name]) for name, value in whole.weights.items())


def test_too_many_in_a_row_end_the_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert start(tmp_path, model, [*GOOD[:2], *[BROKEN] * 8], max_skipped_steps=2) == 1
    errors = capsys.readouterr().err
    assert "error: step 4: the gradient of head, " in errors and "is not finite, step 3 in a row" in errors
    assert "the weights of embedding are not finite" in errors and not (tmp_path / "out/model.safetensors").exists()


def test_skipping_needs_clipping(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert start(tmp_path, model, GOOD, max_grad_norm=None) == 1
    errors = capsys.readouterr().err
    assert "on_non_finite: skip without clipping" in errors and "hint: set max_grad_norm" in errors


def test_a_good_step_in_between_begins_the_count_anew():
    skipped, bad = SkippedSteps(1), replace(STATS, non_finite="head")
    for stats in (bad, STATS, bad, STATS, bad):
        skipped.stepped(stats)
    assert skipped.total == 3
    with pytest.raises(NonFinite, match="step 1: the gradient of head is not finite, step 2 in a row"):
        skipped.stepped(bad)
