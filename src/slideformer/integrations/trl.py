"""An `SFTTrainer` in the shape of TRL's: a script that uses TRL's needs another import, and nothing else.

from trl import SFTConfig
from slideformer.integrations.trl import SFTTrainer
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, EarlyStoppingCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from slideformer.errors import ConfigError
from slideformer.integrations import sft_settings
from slideformer.integrations.sft_data import SftEncoder, encode_dataset, template_with_marks
from slideformer.integrations.sft_evaluation import ENGINE_SETTINGS, mean_loss
from slideformer.listeners.run_directory import METRICS, read_metrics
from slideformer.models.hub import read_config, resolve
from slideformer.run.saving import export
from slideformer.run.trainer import Trainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, TrainingArguments

TRAIN_FILE, EVAL_FILE = "train_data.parquet", "eval_data.parquet"


class SFTTrainer:
    """Supervised fine-tuning with the arguments, data sets and losses of TRL's class of this name.

    What would train something else than TRL does is refused with the argument's name, when the trainer is made. Two
    things are as in the rest of this project: masters are fp32 whatever `bf16` says, and `train_sampling_strategy`
    "random" draws another random order than PyTorch's sampler.

    Args:
        model: a model directory or hub id.
        args: `trl.SFTConfig` or any `transformers.TrainingArguments`; None: TRL's defaults.
        train_dataset: a `datasets.Dataset` of `messages`, `prompt` and `completion`, `text`, or `input_ids`.
        eval_dataset: the same, for `evaluate`, and for evaluations during training if `args.eval_strategy` says so.
        processing_class: the tokenizer; None: the model's.
        callbacks: of transformers, told as `HuggingFaceListener` says.
        formatting_func: makes the text of a record.
        gpu_budget, host_budget: memory the run may use, such as "8GiB"; None: what is free.
        parity_check: train a tiny copy of the model both ways first.
        others: parameters of TRL's that must be left out.

    Attributes:
        state: transformers' `TrainerState` of the last run, with its `log_history`.

    Raises:
        ConfigError, DataError: an argument or a record that cannot be used as TRL would.
    """

    def __init__(
        self,
        model: str,
        args: "TrainingArguments | None" = None,
        *,
        train_dataset: "Dataset | None" = None,
        eval_dataset: "Dataset | None" = None,
        processing_class: "PreTrainedTokenizerBase | None" = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
        gpu_budget: str | None = None,
        host_budget: str | None = None,
        parity_check: bool = True,
        **others: Any,
    ):
        _refuse_others(others)
        self.args = args or _default_arguments(model)
        self._model, self._parity_check = _checked_model(model), parity_check
        self._budget = {"gpu": gpu_budget, "host": host_budget}
        self._settings = sft_settings.run_settings(self.args, len(_checked_dataset("train_dataset", train_dataset)))
        self._shuffled = sft_settings.is_shuffled(self.args)
        sft_settings.check_optimizer(self.args)
        self._output_dir = Path(self._settings["output_dir"])
        path = resolve(model, self._settings["trust_remote_code"])
        sft_settings.check_router(self.args, read_config(path, self._settings["trust_remote_code"]))
        self.processing_class = processing_class or AutoTokenizer.from_pretrained(path)
        self.train_dataset = self._encoded(train_dataset, formatting_func)
        if eval_dataset is None and "eval_steps" in self._settings:
            strategy = sft_settings.strategy_of(self.args, "eval")
            raise ConfigError(f"eval_strategy = {strategy!r} needs data", "give SFTTrainer an eval_dataset")
        self.eval_dataset = None if eval_dataset is None else self._encoded(eval_dataset, formatting_func)
        self.callbacks = list(callbacks or [])
        self.state = TrainerState()
        self._trained = False

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        self.callbacks.append(callback)

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainOutput:
        """Train and save to `args.output_dir`, tokenizer included.

        Args:
            resume_from_checkpoint: True continues from the newest whole checkpoint there, a path from that one.
        """
        output_dir = self._output_dir
        output_dir.mkdir(parents=True, exist_ok=True)
        stopping, callbacks = self._early_stopping()
        resume = "auto" if resume_from_checkpoint is True else resume_from_checkpoint or None
        config = {
            **self._settings,
            "model": self._model,
            "budget": self._budget,
            "max_length": self._max_length(self.train_dataset, self.eval_dataset),
            "parity_check": self._parity_check,
            "resume_from_checkpoint": resume,
            **stopping,
            **self._written_data(),
        }
        keeper = _StateKeeper()
        stopped_at = Trainer(config, callbacks=[keeper, *callbacks]).train()
        self.state, self._trained = keeper.state, stopped_at is None
        if stopped_at is not None:
            print(f"stopped after {stopped_at.name}; to go on: train(resume_from_checkpoint=True)")
        self.processing_class.save_pretrained(output_dir)
        losses = [stats.loss for stats in read_metrics(output_dir / METRICS)]
        summary = next((log for log in reversed(self.state.log_history) if "train_loss" in log), {})
        return TrainOutput(self.state.global_step, sum(losses) / len(losses), summary)

    def evaluate(self, eval_dataset: "Dataset | None" = None) -> dict[str, float]:
        """The mean loss per trained token of `eval_dataset`, by the trained model, or before training by the first.

        transformers averages the means of batches instead, so its number depends on how they were cut.
        """
        dataset = self.eval_dataset if eval_dataset is None else self._encoded(eval_dataset, None)
        if dataset is None:
            raise ConfigError("there is no eval_dataset", "give one to SFTTrainer or to evaluate")
        loss = mean_loss(
            str(self._output_dir) if self._trained else self._model,
            dataset,
            batch_size=self.args.per_device_eval_batch_size,
            max_length=self._max_length(dataset),
            gpu_budget=self._budget["gpu"],
            host_budget=self._budget["host"],
            **{key: self._settings[key] for key in ENGINE_SETTINGS},
        )
        return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700.0)), "epoch": self.state.epoch}

    def save_model(self, output_dir: str | None = None) -> None:
        """Copy the trained model with its tokenizer to `output_dir`; it is in `args.output_dir` already."""
        if not self._trained:
            raise ConfigError("save_model: nothing has been trained", "call train first")
        if output_dir is not None and Path(output_dir).resolve() != self._output_dir.resolve():
            export(self._output_dir, Path(output_dir), self._settings["compute_dtype"])

    def _encoded(self, dataset: "Dataset | None", formatting: Callable[[dict[str, Any]], str] | None) -> "Dataset":
        args, assistant_only = self.args, getattr(self.args, "assistant_only_loss", False)
        if end := getattr(args, "eos_token", None):
            self.processing_class.eos_token = end
        encoder = SftEncoder(
            self.processing_class,
            getattr(args, "dataset_text_field", "text"),
            getattr(args, "completion_only_loss", None),
            assistant_only,
            template_with_marks(self.processing_class) if assistant_only else None,
        )
        dataset = _checked_dataset("dataset", dataset)
        encoded = encode_dataset(dataset, encoder, formatting, getattr(args, "dataset_num_proc", None))
        return encoded.shuffle(seed=args.seed) if getattr(args, "shuffle_dataset", False) else encoded

    def _written_data(self) -> dict[str, Any]:
        """What is trained and evaluated on, as files of the run directory."""
        train, held_out = self._output_dir / TRAIN_FILE, self._output_dir / EVAL_FILE
        self.train_dataset.to_parquet(train)
        data = {"data": {"path": train, "shuffle": self._shuffled, "cache_dir": None}}
        if self.eval_dataset is None or "eval_steps" not in self._settings:
            return data
        self.eval_dataset.to_parquet(held_out)
        return data | {"eval_data": {"path": held_out}}

    def _early_stopping(self) -> tuple[dict[str, Any], list[TrainerCallback | type[TrainerCallback]]]:
        """Settings in the place of transformers' EarlyStoppingCallback, and the other callbacks."""
        settings, others = {}, []
        for callback in self.callbacks:
            made = callback() if callback is EarlyStoppingCallback else callback
            if isinstance(made, EarlyStoppingCallback) and type(made) is EarlyStoppingCallback:  # a subclass may differ
                settings = sft_settings.early_stopping(self.args, made)
            else:
                others.append(callback)
        return settings, others

    def _max_length(self, *datasets: "Dataset | None") -> int:
        """`max_length`, or what the longest record has."""
        given = getattr(self.args, "max_length", None)
        return given or max(2, *(len(ids) for data in datasets if data is not None for ids in data["input_ids"]))


class _StateKeeper(TrainerCallback):
    """Remembers the state, which transformers' Trainer keeps as its own."""

    def __init__(self) -> None:
        self.state = TrainerState()

    def on_init_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.state = state


def _default_arguments(model: str) -> "TrainingArguments":
    from trl.trainer.sft_config import SFTConfig

    return SFTConfig(f"{model.rsplit('/', 1)[-1]}-SFT")


def _checked_model(model: Any) -> str:
    if not isinstance(model, str):
        raise ConfigError(
            f"model is a {type(model).__name__}: a loaded model takes the memory that the engine is to save",
            "give the model's directory or hub id, as a string",
        )
    return model


def _checked_dataset(name: str, dataset: Any) -> "Dataset":
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise ConfigError(f"{name} is a {type(dataset).__name__}", "give a datasets.Dataset")
    return dataset


def _refuse_others(others: dict[str, Any]) -> None:
    """Parameters of TRL's class that have no meaning here; their defaults say nothing."""
    for name, value in others.items():
        if value is not None and value != (None, None):
            raise ConfigError(f"{name} is not supported", f"leave {name} out")
