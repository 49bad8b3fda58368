"""Packing, evaluation, early stopping and the best model, from TRL's arguments: as TRL and transformers have them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from tiny_sft import DATA, RECORDS, arguments
from transformers import EarlyStoppingCallback

from slideformer.errors import ConfigError
from slideformer.integrations.trl import SFTTrainer
from slideformer.listeners.metrics import EvalStats
from slideformer.listeners.run_directory import read_log, read_metrics

HELD_OUT = Dataset.from_list([{"prompt": "2+2=", "completion": " 5"}, {"prompt": "1+1=", "completion": " 3 or so"}])
EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1}


def trainer_for(model: str, directory: Path, callbacks: Any = None, held_out: Any = HELD_OUT, **given: Any) -> Any:
    args = arguments(directory, **given)
    return SFTTrainer(
        model, args, train_dataset=DATA, eval_dataset=held_out, callbacks=callbacks, parity_check=False
    )  # fmt: skip


def evals(directory: Path) -> list[EvalStats]:
    return read_log(directory / "evals.jsonl", EvalStats)


def test_packed_rows_train_as_their_documents_do_in_trl(model: str, tmp_path: Path):
    """Each step has the whole data, so that which record stands in which row decides nothing."""
    trl, whole = pytest.importorskip("trl"), {"per_device_train_batch_size": len(RECORDS), "max_length": 24}
    args = arguments(tmp_path / "theirs", gradient_accumulation_steps=1, **whole)
    theirs = trl.SFTTrainer(model, args, train_dataset=DATA)
    theirs.train()
    trainer_for(model, tmp_path / "ours", packing=True, gradient_accumulation_steps=1, **whole).train()
    config = json.loads((tmp_path / "ours/run.json").read_text())["config"]
    assert config["packing"] and config["max_length"] == 24
    found = read_metrics(tmp_path / "ours/metrics.jsonl")
    expected = [log for log in theirs.state.log_history if "loss" in log]
    assert [step.loss for step in found] == pytest.approx([log["loss"] for log in expected], rel=1e-4)
    assert [step.grad_norm for step in found] == pytest.approx([log["grad_norm"] for log in expected], rel=1e-3)


def test_as_many_packed_rows_as_trl_makes(model: str, tmp_path: Path):
    trl = pytest.importorskip("trl")
    settings = {"packing": True, "max_length": 24, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    rows = trl.SFTTrainer(model, arguments(tmp_path / "theirs", **settings), train_dataset=DATA).train_dataset
    trainer_for(model, tmp_path / "ours", **settings, num_train_epochs=1).train()
    assert len(read_metrics(tmp_path / "ours/metrics.jsonl")) == len(rows) < len(RECORDS)


@pytest.mark.parametrize("settings", [{"eval_steps": 2}, {"eval_steps": 4}, {"eval_strategy": "epoch"}])
def test_it_evaluates_when_transformers_does(settings: dict[str, Any], model: str, tmp_path: Path):
    trl, settings = pytest.importorskip("trl"), {"eval_strategy": "steps", "num_train_epochs": 1.5, **settings}
    theirs = trl.SFTTrainer(
        model, arguments(tmp_path / "theirs", **settings), train_dataset=DATA, eval_dataset=HELD_OUT
    )
    theirs.train()
    ours = trainer_for(model, tmp_path / "ours", **settings)
    ours.train()
    steps, expected = (
        [log["step"] for log in trainer.state.log_history if "eval_loss" in log] for trainer in (ours, theirs)
    )
    assert steps == expected == [stats.step for stats in evals(tmp_path / "ours")]


def test_it_stops_early_and_ends_with_the_best_model(model: str, tmp_path: Path):
    """The held-out answers contradict what is trained, so their loss soon rises."""
    settings = {
        **EVERY_STEP, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "num_train_epochs": 20,
        "learning_rate": 0.05, "lr_scheduler_type": "constant", "per_device_eval_batch_size": 2,
    }  # fmt: skip
    trl, directory = pytest.importorskip("trl"), tmp_path / "theirs"
    theirs = trl.SFTTrainer(
        model, arguments(directory, **settings), train_dataset=DATA, eval_dataset=HELD_OUT,
        callbacks=[EarlyStoppingCallback(2, 0.01)],
    )  # fmt: skip
    theirs.train()
    ours = trainer_for(model, tmp_path / "ours", [EarlyStoppingCallback(2, 0.01)], **settings)
    output = ours.train()
    found = evals(tmp_path / "ours")
    assert output.global_step == theirs.state.global_step == len(found) < 60
    best = min(found, key=lambda stats: stats.loss)
    assert best.step == theirs.state.best_global_step < output.global_step
    assert ours.evaluate()["eval_loss"] == pytest.approx(best.loss, rel=1e-5)


def test_the_best_model_alone_is_saved(model: str, tmp_path: Path):
    trainer_for(
        model, tmp_path, **EVERY_STEP, save_strategy="best", metric_for_best_model="loss", learning_rate=0.05
    ).train()  # fmt: skip
    best = min(evals(tmp_path), key=lambda stats: stats.loss)
    assert json.loads((tmp_path / "best/eval.json").read_text())["step"] == best.step
    assert load_file(tmp_path / "best/model.safetensors") and not list(tmp_path.glob("checkpoint-*"))


def test_records_longer_than_those_of_training_are_evaluated_whole(model: str, tmp_path: Path):
    long = Dataset.from_list([{"prompt": "2+2=", "completion": " 4" * 30}])
    trainer_for(model, tmp_path, held_out=long, max_length=None, **EVERY_STEP).train()
    assert {stats.tokens for stats in evals(tmp_path)} == {61}  # and the end of the text


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy = 'wrapped'"),
        ({"packing": True, "packing_strategy": "bfd_split"}, "packing_strategy = 'bfd_split'"),
        ({"packing": True, "max_length": None}, "max_length = None"),
        ({"packing": True, "save_strategy": "epoch"}, "save_strategy = 'epoch'"),
        ({"packing": True, "eval_strategy": "epoch"}, "eval_strategy = 'epoch'"),
        ({"eval_strategy": "steps", "eval_steps": 0.25}, "eval_steps = 0.25"),
        ({**EVERY_STEP, "eval_delay": 2}, "eval_delay = 2"),
        (
            {**EVERY_STEP, "load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2},
            "save_steps = 2 leaves evaluated models unsaved",
        ),
        (
            {**EVERY_STEP, "save_strategy": "best", "metric_for_best_model": "eval_accuracy"},
            "metric_for_best_model = 'eval_accuracy'",
        ),
        (
            {**EVERY_STEP, "save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": True},
            "greater_is_better = True",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    settings: dict[str, Any], complaint: str, model: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=complaint):
        trainer_for(model, tmp_path, **settings)


def test_evaluations_need_data_and_early_stopping_needs_evaluations(model: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="eval_strategy = 'steps' needs data"):
        trainer_for(model, tmp_path, held_out=None, **EVERY_STEP)
    with pytest.raises(ConfigError, match="leaves EarlyStoppingCallback nothing to see"):
        trainer_for(model, tmp_path, [EarlyStoppingCallback]).train()
