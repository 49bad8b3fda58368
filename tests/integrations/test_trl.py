"""An SFTTrainer in TRL's shape: the same losses, and nothing ignored that would change them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_sft import DATA, arguments
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments

from slideformer.errors import ConfigError
from slideformer.integrations.trl import SFTTrainer
from slideformer.listeners.run_directory import read_metrics


def trainer_for(model: str, directory: Path, callbacks: Any = None, **settings: Any) -> SFTTrainer:
    args = arguments(directory, **settings)
    return SFTTrainer(
        model, args, train_dataset=DATA, eval_dataset=DATA, callbacks=callbacks, parity_check=False
    )  # fmt: skip


def test_losses_norms_and_weights_are_those_of_trl(model: str, tmp_path: Path):
    trl = pytest.importorskip("trl")
    theirs = trl.SFTTrainer(model, arguments(tmp_path / "theirs"), train_dataset=DATA)
    theirs.train()
    ours = trainer_for(model, tmp_path / "ours")
    output = ours.train()
    expected = [log for log in theirs.state.log_history if "loss" in log]
    found = read_metrics(tmp_path / "ours/metrics.jsonl")
    assert (
        len(found) == len(expected) == output.global_step == 6
    )  # ten records by four: an epoch's last step is smaller
    assert [step.loss for step in found] == pytest.approx([log["loss"] for log in expected], rel=1e-4)
    assert [step.grad_norm for step in found] == pytest.approx([log["grad_norm"] for log in expected], rel=1e-3)
    assert [step.learning_rate for step in found] == pytest.approx([log["learning_rate"] for log in expected])
    assert [log["loss"] for log in ours.state.log_history if "loss" in log] == [step.loss for step in found]
    weights = load_file(tmp_path / "ours/model.safetensors")
    for name, value in theirs.model.named_parameters():
        if name in weights:
            torch.testing.assert_close(weights[name], value.detach(), rtol=1e-3, atol=1e-4)


def test_evaluate_before_and_after_and_save(model: str, tmp_path: Path):
    trainer = trainer_for(model, tmp_path / "out")
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before and after["epoch"] == 2
    trainer.save_model(str(tmp_path / "copy"))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "copy"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "copy").dtype == torch.float32


def test_the_loss_of_evaluate_is_a_mean_over_tokens(model: str, tmp_path: Path):
    trainer = trainer_for(model, tmp_path, per_device_eval_batch_size=3)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    total, tokens = 0.0, 0
    for record in trainer.train_dataset:
        ids, labels = (torch.tensor(record[name])[None] for name in ("input_ids", "labels"))  # type: ignore[call-overload]
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(plain(input_ids=ids, labels=labels).loss) * count
        tokens += count
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_it_stops_and_goes_on(model: str, tmp_path: Path):
    class Save(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = state.global_step == 2

    trainer_for(model, tmp_path / "out", callbacks=[Save]).train()
    whole = read_metrics(tmp_path / "out/metrics.jsonl")
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    output = trainer_for(model, tmp_path / "out").train(resume_from_checkpoint=str(checkpoint))
    again = read_metrics(tmp_path / "out/metrics.jsonl")
    assert [step.loss for step in again] == [step.loss for step in whole] and output.global_step == 6


def test_transformers_arguments_and_a_checkpoint_an_epoch(model: str, tmp_path: Path):
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, save_strategy="epoch", per_device_train_batch_size=5,
        num_train_epochs=2, report_to=[], seed=7,
    )  # fmt: skip
    SFTTrainer(model, args, train_dataset=DATA, parity_check=False).train()
    config = json.loads((tmp_path / "out/run.json").read_text())["config"]
    assert config["batch_size"] == 5 and config["save_steps"] == 2 and config["seed"] == 7
    assert config["compute_dtype"] == "fp32" and config["data"]["shuffle"] is True
    assert (tmp_path / "out/checkpoint-2").exists()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor = 0.1"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha = 5.0"),
        ({"optim": "adafactor"}, "optim = 'adafactor'"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type = 'polynomial'"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy = 'group_by_length'"),
        ({"loss_type": "dft"}, "loss_type = 'dft'"),
        ({"save_strategy": "steps", "save_steps": 0.5}, "save_steps = 0.5"),
        ({"model_init_kwargs": {"revision": "v2"}}, r"model_init_kwargs\['revision'\] = 'v2'"),
        ({"router_aux_loss_coef": 0.01}, "router_aux_loss_coef = 0.01"),
    ],
)
def test_what_would_change_training_is_refused_by_name(
    settings: dict[str, Any], complaint: str, model: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=complaint):
        trainer_for(model, tmp_path, **settings)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"peft_config": object()}, "peft_config is not supported"),
        ({"compute_metrics": len}, "compute_metrics is not supported"),
        ({"train_dataset": None}, "train_dataset is a NoneType"),
        ({"model": torch.nn.Linear(1, 1)}, "model is a Linear"),
    ],
)
def test_what_trl_also_takes_is_refused_by_name(given: dict[str, Any], complaint: str, model: str, tmp_path: Path):
    parameters: dict[str, Any] = {"model": model, "args": arguments(tmp_path), "train_dataset": DATA, **given}
    with pytest.raises(ConfigError, match=complaint):
        SFTTrainer(**parameters)


def test_several_processes_are_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ConfigError, match="world_size = 2"):
        trainer_for(model, tmp_path)


def test_what_says_nothing_is_taken(model: str, tmp_path: Path):
    SFTTrainer(
        model, arguments(tmp_path), train_dataset=DATA, peft_config=None, optimizers=(None, None)
    )  # fmt: skip


def test_there_is_nothing_to_evaluate_or_save(model: str, tmp_path: Path):
    trainer = SFTTrainer(model, arguments(tmp_path), train_dataset=DATA)
    with pytest.raises(ConfigError, match="no eval_dataset"):
        trainer.evaluate()
    with pytest.raises(ConfigError, match="nothing has been trained"):
        trainer.save_model()
