"""transformers' callbacks are told of a run in transformers' order, and get what they ask for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback
from transformers import Trainer as HuggingFaceTrainer
from transformers import TrainingArguments as HuggingFaceArguments

from slideformer.errors import ConfigError
from slideformer.listeners.events import Wishes
from slideformer.listeners.metrics import EvalStats, RunRecord, StepStats
from slideformer.listeners.transformers_callbacks import HuggingFaceListener

EVENTS = (
    "init_end", "train_begin", "epoch_begin", "step_begin", "step_end", "log", "evaluate", "save", "epoch_end",
    "train_end",
)  # fmt: skip


class Diary(TrainerCallback):
    """Writes down what it is told, and when."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int]] = []
        self.logs: list[dict[str, float]] = []

    def __getattribute__(self, name: str) -> Any:
        event = name.removeprefix("on_")
        if name.startswith("on_") and event in EVENTS:
            return lambda args, state, control, **more: self.note(event, args, state, more)
        return super().__getattribute__(name)

    def note(self, event: str, args: Any, state: Any, more: dict[str, Any]) -> None:
        self.lines.append((event, state.global_step))
        self.args, self.state, self.more = args, state, more
        if event == "log":
            self.logs.append(dict(more["logs"]))


class Asks(TrainerCallback):
    """Sets a flag of the control at the end of one step."""

    def __init__(self, flag: str, step: int):
        self._flag, self._step = flag, step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == self._step:
            setattr(control, self._flag, True)
        return control


def steps_of(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


class TenRows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(1)}


class OneWeight(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.w(x).mean()}


def order_of_transformers(directory: Path) -> list[tuple[str, int]]:
    """What its own Trainer tells of a run of as many steps, epochs, logs and saves."""
    diary = Diary()
    arguments = HuggingFaceArguments(
        output_dir=str(directory), per_device_train_batch_size=4, num_train_epochs=2, logging_steps=2, save_steps=4,
        report_to=[], use_cpu=True, disable_tqdm=True, save_only_model=True,
    )  # fmt: skip
    trainer = HuggingFaceTrainer(OneWeight(), arguments, train_dataset=TenRows(), callbacks=[diary])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return diary.lines


def test_the_order_is_that_of_transformers(run_tiny: Any, tmp_path: Path):
    diary = Diary()
    run_tiny([diary], logging_steps=2, save_steps=4)
    expected = order_of_transformers(tmp_path / "theirs")
    # step_begin: transformers tells of it with the number of the step before, as here; the save at the very end is the
    # model itself here, which is no checkpoint; and a checkpoint is written once the next step has been told of.
    expected.remove(("save", 6))
    assert [line for line in diary.lines if line[0] != "save"] == [line for line in expected if line[0] != "save"]
    assert diary.lines.count(("save", 4)) == 1


def test_logs_hold_what_transformers_logs(run_tiny: Any):
    diary = Diary()
    out = run_tiny([diary], logging_steps=2)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = diary.logs[0], diary.logs[-1]
    assert first["loss"] == pytest.approx((steps[0]["loss"] + steps[1]["loss"]) / 2)
    assert first["grad_norm"] == steps[1]["grad_norm"] and first["learning_rate"] == steps[1]["learning_rate"]
    assert first["epoch"] == pytest.approx(2 / 3) and first["tokens_per_second"] > 0 and first["host_peak_bytes"] > 0
    assert last["train_loss"] == pytest.approx(sum(step["loss"] for step in steps) / 6) and last["epoch"] == 2
    assert [log["step"] for log in diary.state.log_history] == [2, 4, 6, 6]


def test_arguments_state_and_model_are_those_of_the_run(run_tiny: Any):
    diary = Diary()
    out = run_tiny([diary], micro_batch_size=2, run_name="tiny", weight_decay=0.1, seed=3, warmup_ratio=0.5)
    args, state, model = diary.args, diary.state, diary.more["model"]
    assert args.output_dir == str(out) and args.run_name == "tiny" and args.weight_decay == 0.1 and args.seed == 3
    assert args.per_device_train_batch_size == 2 and args.gradient_accumulation_steps == 2
    assert args.warmup_steps == 0.5 and args.get_warmup_steps(6) == 3
    assert state.max_steps == 6 and state.num_train_epochs == 2 and state.num_input_tokens_seen > 0
    assert model.config.model_type == "qwen3" and {p.device.type for p in model.parameters()} == {"meta"}


def test_a_stop_comes_after_the_step_that_was_running_and_saves_the_model(run_tiny: Any):
    diary = Diary()
    out = run_tiny([Asks("should_training_stop", 2), diary])
    assert steps_of(out) == [1, 2, 3] and (out / "model.safetensors").exists()
    assert diary.lines[-1] == ("train_end", 3) and "train_loss" in diary.logs[-1]


def test_a_checkpoint_that_is_asked_for_is_written(run_tiny: Any):
    diary = Diary()
    out = run_tiny([Asks("should_save", 2), diary])
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-3"] and ("save", 3) in diary.lines


def test_a_log_that_is_asked_for_comes_at_once(run_tiny: Any):
    diary = Diary()
    run_tiny([Asks("should_log", 3), diary], logging_steps=100)
    assert [line for line in diary.lines if line[0] == "log"] == [("log", 3), ("log", 6), ("log", 6)]


def test_ending_an_epoch_early_is_refused(run_tiny: Any):
    with pytest.raises(ConfigError, match="should_epoch_stop"):
        run_tiny([Asks("should_epoch_stop", 2)])


def test_what_a_callback_raises_reaches_the_caller_and_all_are_told_of_the_end(run_tiny: Any):
    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise ZeroDivisionError("in a callback")

    diary = Diary()
    with pytest.raises(ZeroDivisionError, match="in a callback"):
        run_tiny([diary, Fails])
    assert diary.lines[-1] == ("train_end", 1) and diary.logs == []


def test_a_resumed_run_ends_its_epochs_where_they_end(run_tiny: Any):
    run_tiny(max_steps=9, num_train_epochs=3, save_steps=4)
    diary = Diary()
    run_tiny([diary], max_steps=9, num_train_epochs=3, save_steps=4, resume_from_checkpoint="auto")
    assert [line for line in diary.lines if "epoch" in line[0]] == [("epoch_begin", 8), ("epoch_end", 9)]


def test_a_trainer_that_was_finished_can_train_again(run_tiny: Any):
    wishes = Wishes()
    run_tiny([Asks("should_training_stop", 2)], wishes=wishes)
    assert steps_of(run_tiny(wishes=wishes)) == [1, 2, 3, 4, 5, 6]


def test_transformers_own_callbacks_run(run_tiny: Any, capsys: pytest.CaptureFixture[str]):
    run_tiny([PrinterCallback, ProgressCallback()], logging_steps=3)
    assert "'grad_norm'" in capsys.readouterr().out


RUN = RunRecord(
    "", {
        "output_dir": "out", "learning_rate": 1e-3, "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.99,
        "adam_epsilon": 1e-8, "lr_scheduler_type": "linear", "warmup_steps": 0, "max_steps": -1, "num_train_epochs": 1,
        "logging_steps": 1, "save_total_limit": None, "seed": 1, "run_name": None, "max_grad_norm": None,
        "save_steps": None, "eval_steps": 1,
    },
    {}, {"device_bytes": None}, {"sizes": {"micro_batch_size": 1, "micro_batches": 1}}, {}, {}, steps=10,
)  # fmt: skip
STEP = StepStats(1, 2.0, 1.0, 1e-3, 10, 10, 1.0, 10.0, 0, 1, epoch=0.1)


def test_early_stopping_of_transformers_finishes_the_run():
    wishes, diary = Wishes(), Diary()
    listener = HuggingFaceListener([EarlyStoppingCallback(early_stopping_patience=2), diary], wishes)
    listener.began(RUN, 0)
    listener.stepped(STEP)
    finished = []
    for step, loss in enumerate([2.0, 1.5, 1.6, 1.7], start=1):
        listener.evaluated(EvalStats(step, loss, 2.718, 10, 0.1))
        finished.append(wishes.finish)
    assert finished == [False, False, False, True]
    assert diary.state.best_metric == 1.5 and diary.state.best_global_step == 2
    assert diary.lines[-2:] == [("log", 1), ("evaluate", 1)] and diary.logs[-1]["eval_loss"] == 1.7


def test_an_evaluation_may_be_asked_for():
    wishes = Wishes()
    listener = HuggingFaceListener([Asks("should_evaluate", 1)], wishes)
    listener.began(RUN, 0)
    listener.stepped(STEP)
    assert wishes == Wishes(evaluate=True)
