"""Evaluation during a run: when, on what, what it is compared with, and what it leaves alone."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model, save_tiny_tokenizer
from tiny_runs import Run, answer_of, batch_at, make_records, mean_loss, read_run, write_config, write_records
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from slideformer.cli import main
from slideformer.listeners.events import Listener, Wishes
from slideformer.listeners.metrics import EvalStats, Sample, StepStats
from slideformer.listeners.run_directory import read_log
from slideformer.prepare.job import plan_for
from slideformer.run.evaluation import EarlyStopping
from slideformer.run.trainer import Trainer
from slideformer.settings.config import load_config

RECORDS, HELD_OUT = make_records(10), make_records(7, seed=9, lengths=(8, 30))
SETTINGS: dict[str, Any] = {
    "batch_size": 4, "max_length": 32, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "micro_batch_size": 2,
    "max_steps": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tokenizer(save_tiny_model(tmp_path_factory.mktemp("model"), "qwen3"))


def config_of(directory: Path, model: Path, **settings: Any) -> Path:
    directory.mkdir(exist_ok=True)
    data = write_records(directory / "data.jsonl", RECORDS)
    return write_config(directory / "run.yaml", model, data, directory / "out", **{**SETTINGS, **settings})


def eval_data(directory: Path) -> dict[str, Any]:
    return {"eval_data": {"path": str(write_records(directory / "held_out.jsonl", HELD_OUT))}}


def start(directory: Path, model: Path, *words: str, **settings: Any) -> Run:
    assert main(["train", str(config_of(directory, model, **settings)), *words]) == 0
    return read_run(directory / "out")


def evals(directory: Path) -> list[EvalStats]:
    return read_log(directory / "out/evals.jsonl", EvalStats)


def loss_of(saved: Path) -> float:
    """The held-out loss as anyone would compute it."""
    loaded = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    with torch.no_grad():
        return float(mean_loss(loaded, batch_at(HELD_OUT, len(HELD_OUT), 0)))


# ---- when, and of what


def test_the_held_out_loss_of_a_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start(tmp_path, model, eval_steps=2, eval_on_start=True, **eval_data(tmp_path))
    found = evals(tmp_path)
    assert [stats.step for stats in found] == [0, 2, 4, 5]  # the last step is always evaluated
    assert found[0].loss == pytest.approx(loss_of(model), rel=1e-5)
    assert found[-1].loss == pytest.approx(loss_of(tmp_path / "out"), rel=1e-5)
    assert all(stats.perplexity == pytest.approx(math.exp(stats.loss)) and stats.seconds > 0 for stats in found)
    assert {stats.tokens for stats in found} == {sum(len(r["labels"]) - 2 for r in HELD_OUT)}
    out = capsys.readouterr().out
    assert f"step 2/5  held-out loss {found[1].loss:.4f}  perplexity" in out
    assert f"held out for evaluation: 7 records, {sum(len(r['labels']) for r in HELD_OUT)} tokens" in out


def test_without_eval_steps_it_is_only_the_end(model: Path, tmp_path: Path):
    start(tmp_path, model, **eval_data(tmp_path))
    assert [stats.step for stats in evals(tmp_path)] == [5]


@pytest.mark.parametrize(
    "settings", [{"max_grad_norm": None}, {"max_grad_norm": 0.5}, {"gradient_checkpointing": True}]
)
def test_a_run_with_evaluation_is_the_run_without(model: Path, tmp_path: Path, settings: dict[str, Any]):
    often = start(tmp_path, model, eval_steps=1, eval_on_start=True, save_best=True, **eval_data(tmp_path), **settings)
    never = start(tmp_path / "never", model, **settings)
    assert often.losses == never.losses and often.norms == never.norms
    assert all(torch.equal(value, never.weights[name]) for name, value in often.weights.items())


def test_a_share_of_the_records_is_held_out(model: Path, tmp_path: Path):
    start(tmp_path, model, eval_size=0.3, max_steps=-1, num_train_epochs=1, batch_size=2)
    steps = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    trained = sum(step["trained_tokens"] for step in steps)
    assert len(steps) == 4  # 7 records
    assert trained + evals(tmp_path)[0].tokens == sum(len(record["labels"]) - 2 for record in RECORDS)


def test_the_plan_covers_held_out_records_that_are_longer(model: Path, tmp_path: Path):
    plan = plan_for(load_config(config_of(tmp_path, model, **eval_data(tmp_path))))
    assert plan.sizes.max_length == max(len(record["labels"]) for record in HELD_OUT)


def test_a_listener_may_ask_for_an_evaluation(model: Path, tmp_path: Path):
    wishes = Wishes()

    class Asking(Listener):
        def stepped(self, stats: StepStats) -> None:
            if stats.step == 2:  # told while step 3 runs
                wishes.evaluate = True

    Trainer(load_config(config_of(tmp_path, model, **eval_data(tmp_path))), [Asking()], wishes).train()
    assert [stats.step for stats in evals(tmp_path)] == [3, 5] and not wishes.evaluate


# ---- early stopping


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_it_stops_where_transformers_stops(patience: int, threshold: float, seed: int, tmp_path: Path):
    losses = (2 + 0.1 * torch.randn(12, generator=torch.Generator().manual_seed(seed))).tolist()
    ours = EarlyStopping(patience, threshold)
    theirs, state, control = EarlyStoppingCallback(patience, threshold), TrainerState(), TrainerControl()
    arguments = TrainingArguments(
        str(tmp_path), metric_for_best_model="loss", greater_is_better=False, eval_strategy="steps", report_to=[]
    )
    for step, loss in enumerate(losses, start=1):
        ours.see(EvalStats(step, loss, 1.0, 1, 1.0))
        theirs.on_evaluate(arguments, state, control, {"eval_loss": loss})
        state.best_metric = loss if state.best_metric is None else min(loss, state.best_metric)
        assert ours.enough == control.should_training_stop
        if ours.enough:
            return


def test_the_untrained_model_is_nothing_to_fall_back_to():
    stopping = EarlyStopping(1, 0.0, [EvalStats(0, 1.0, 1, 1, 1), EvalStats(1, 2.0, 1, 1, 1)])
    assert not stopping.enough
    stopping.see(EvalStats(2, math.nan, 1, 1, 1))
    assert stopping.enough


RISING = {"learning_rate": 0.3, "eval_steps": 1, "max_steps": 30, "early_stopping_patience": 2}


def test_a_run_stops_early_and_saves_its_best_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start(tmp_path, model, load_best_model_at_end=True, **RISING, **eval_data(tmp_path))
    found = evals(tmp_path)
    best = min(found, key=lambda stats: stats.loss)
    assert len(found) == best.step + 2 < 30
    assert loss_of(tmp_path / "out") == pytest.approx(best.loss, rel=1e-5)
    out = capsys.readouterr().out
    assert "stopping early: 2 evaluations in a row did not improve the loss" in out
    assert f"the best model is that of step {best.step}" in out


def test_the_best_model_is_kept_beside_the_last(model: Path, tmp_path: Path):
    start(tmp_path, model, save_best=True, save_steps=1, save_total_limit=1, **RISING, **eval_data(tmp_path))
    found = evals(tmp_path)
    best = min(found, key=lambda stats: stats.loss)
    assert loss_of(tmp_path / "out/best") == pytest.approx(best.loss, rel=1e-5)
    assert loss_of(tmp_path / "out") == pytest.approx(found[-1].loss, rel=1e-5) != pytest.approx(best.loss, rel=1e-5)
    assert json.loads((tmp_path / "out/best/eval.json").read_text())["step"] == best.step


def test_patience_and_the_best_model_survive_an_interruption(model: Path, tmp_path: Path):
    settings: dict[str, Any] = {**RISING, "load_best_model_at_end": True, "save_steps": 1, **eval_data(tmp_path)}
    start(tmp_path / "whole", model, **settings)
    last = len(evals(tmp_path / "whole"))
    wishes = Wishes()

    class Stopping(Listener):
        def evaluated(self, stats: EvalStats) -> None:
            wishes.stop = stats.step == last - 1  # one evaluation of patience is used up

    config = load_config(config_of(tmp_path / "part", model, **settings))
    assert Trainer(config, [Stopping()], wishes).train() == tmp_path / f"part/out/checkpoint-{last - 1}"
    start(tmp_path / "part", model, "--resume_from_checkpoint=auto", **settings)
    whole, part = ([(s.step, s.loss) for s in evals(tmp_path / name)] for name in ("whole", "part"))
    assert whole == part
    one, other = (load_file(tmp_path / name / "out/model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# ---- sample answers

PROMPTS = ["w5 w6 w7", "w9"]
SAMPLES = {"sample_prompts": PROMPTS, "sample_max_new_tokens": 6}


def samples(directory: Path) -> list[Sample]:
    return read_log(directory / "out/samples.jsonl", Sample)


def test_prompts_are_answered_before_and_after_training(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    start(tmp_path, model, **SAMPLES)
    found = samples(tmp_path)
    assert [(sample.step, sample.prompt) for sample in found] == [(s, p) for s in (0, 5) for p in PROMPTS]
    assert [s.answer for s in found] == [answer_of(m, p) for m in (model, tmp_path / "out") for p in PROMPTS]
    assert f"prompt: w9\nanswer after step 5: {found[-1].answer}\n" in capsys.readouterr().out


def test_answers_come_with_the_evaluations_or_at_steps_of_their_own(model: Path, tmp_path: Path):
    start(tmp_path / "with", model, eval_steps=3, **SAMPLES, **eval_data(tmp_path))
    start(tmp_path / "own", model, eval_steps=3, sample_steps=2, **SAMPLES, **eval_data(tmp_path))
    assert [sample.step for sample in samples(tmp_path / "with")][::2] == [0, 3, 5]
    assert [sample.step for sample in samples(tmp_path / "own")][::2] == [0, 2, 4, 5]


@pytest.mark.parametrize("settings", [{"max_grad_norm": None}, {"max_grad_norm": 0.5, "sample_temperature": 0.9}])
def test_a_run_that_answers_is_the_run_that_does_not(model: Path, tmp_path: Path, settings: dict[str, Any]):
    asked = start(tmp_path, model, sample_steps=1, **SAMPLES, **settings)
    silent = start(tmp_path / "silent", model, max_grad_norm=settings["max_grad_norm"])
    assert asked.losses == silent.losses and asked.norms == silent.norms
    assert all(torch.equal(value, silent.weights[name]) for name, value in asked.weights.items())


def test_prompts_may_be_in_a_file_and_the_plan_counts_their_keys_and_values(model: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("w5 w6 w7\n\nw9\n")
    asking = {**SAMPLES, "sample_prompts": str(tmp_path / "prompts.txt")}
    plan = plan_for(load_config(config_of(tmp_path, model, **asking)))
    # two prompts of at most 3 + 6 tokens, keys and values, 3 layers and the one that grows, 2 heads of 16 in fp32
    assert plan.device["answers"]["keys and values"] == pytest.approx(2 * 9 * 2 * (3 + 1) * 2 * 16 * 4, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"sample_prompts": ["w5 " * 40], "sample_max_new_tokens": 8},
            "a pass over 40 tokens is longer than max_length = 32",
        ),
        ({"sample_prompts": ["w5"], "sample_max_new_tokens": 500}, "more than the 128 positions of the model"),
        ({"sample_prompts": ["w5", " "]}, "prompt 2 is empty"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(
    model: Path, tmp_path: Path, settings: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", str(config_of(tmp_path, model, **settings))]) == 1
    assert words in capsys.readouterr().err


def test_a_model_that_is_not_a_number_ends_the_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    broken = shutil.copytree(model, tmp_path / "broken")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    assert main(["train", str(config_of(tmp_path / "run", broken, **SAMPLES))]) == 1
    assert "the model's output is not a number" in capsys.readouterr().err
