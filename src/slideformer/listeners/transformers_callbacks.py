"""Callbacks of transformers, told of a run as its own Trainer would tell them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerState
from transformers.training_args import TrainingArguments

from slideformer.errors import ConfigError
from slideformer.listeners.events import Listener, Wishes
from slideformer.listeners.metrics import EvalStats, RunRecord, StepStats
from slideformer.listeners.training_arguments import trainer_state, training_arguments

EPOCH_TOLERANCE = 1e-9  # an epoch is a sum of fractions
Callback = TrainerCallback | type[TrainerCallback]


class LogEveryFewSteps(DefaultFlowCallback):
    """Asks for a log every `logging_steps`; when to save, evaluate and end, the training loop knows itself."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_log = state.global_step % state.logging_steps == 0 or state.global_step == state.max_steps
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        return control


class HuggingFaceListener(Listener):
    """Calls any `transformers.TrainerCallback` in the order of transformers' Trainer.

    A step is told of when its numbers are known, which is while the next one is running. So `on_step_begin` and
    `on_step_end` of a step come together, and what a callback asks for in them (`should_save`, `should_evaluate`,
    `should_training_stop`) is done after that next step. `state.global_step` is always the step that is told of. A
    request made in `on_evaluate` is honoured at once.

    `on_train_end` is also called when a run fails, so that trackers close what they opened.

    Args:
        callbacks: instances or classes.
        wishes: receives what the callbacks ask for.
        model: passed on to the callbacks: the whole model with its parameters on the meta device. Names, shapes and
            `model.config` are real; values live in the engine, and reading them here is an error of PyTorch.
        tokenizer: passed on as `processing_class`.

    Raises:
        ConfigError: a callback asks for what a run cannot do (`should_epoch_stop`). What a callback raises, its caller
            sees.
    """

    def __init__(self, callbacks: Sequence[Callback], wishes: Wishes, model: Any = None, tokenizer: Any = None):
        self._wishes = wishes
        self._callbacks = CallbackHandler([LogEveryFewSteps(), *callbacks], model, tokenizer, None, None)
        self._control = TrainerControl()
        self._begun = self._complete = self._in_epoch = False
        self._since_log: list[StepStats] = []
        self._losses: list[float] = []

    def began(self, run: RunRecord, done_steps: int) -> None:
        self._args = training_arguments(run)
        self._state = trainer_state(run, self._args, done_steps)
        self._started = time.perf_counter()
        self._output_dir = Path(run.config["output_dir"])
        self._tell("on_init_end")
        self._tell("on_train_begin")
        self._begun = True

    def stepped(self, stats: StepStats) -> None:
        if not self._in_epoch:
            self._tell("on_epoch_begin")
            self._in_epoch = True
        self._tell("on_step_begin")
        self._state.global_step, self._state.epoch = stats.step, stats.epoch
        self._state.num_input_tokens_seen += stats.tokens
        self._since_log.append(stats)
        self._losses.append(stats.loss)
        self._tell("on_step_end")
        self._do_as_asked()
        if _whole(stats.epoch) > _whole(stats.epoch * (stats.step - 1) / stats.step):
            self._end_epoch()

    def evaluated(self, stats: EvalStats) -> None:
        metrics = {"eval_loss": stats.loss, "eval_perplexity": stats.perplexity, "eval_runtime": stats.seconds}
        self._log(dict(metrics))
        self._tell("on_evaluate", metrics=metrics | {"epoch": self._state.epoch})
        best = self._state.best_metric
        if stats.step and (best is None or stats.loss < best):
            self._state.best_metric, self._state.best_global_step = stats.loss, stats.step
        self._do_as_asked()

    def saved(self, step: int, path: Path) -> None:
        """Of checkpoints only: callbacks look for `output_dir/checkpoint-{global_step}`, after later steps, too."""
        self._complete = path == self._output_dir
        if not self._complete:
            now, self._state.global_step = self._state.global_step, step
            self._tell("on_save")
            self._state.global_step = now

    def ended(self) -> None:
        if not self._begun:
            return
        if self._complete:
            if self._in_epoch:
                self._end_epoch()
            self._log(self._summary())
        self._tell("on_train_end")

    def _tell(self, event: str, **more: Any) -> None:
        self._control = getattr(self._callbacks, event)(self._args, self._state, self._control, **more)

    def _end_epoch(self) -> None:
        self._tell("on_epoch_end")
        self._in_epoch = False
        self._do_as_asked()

    def _do_as_asked(self) -> None:
        """Log at once; wish for the rest."""
        control, wishes = self._control, self._wishes
        if control.should_epoch_stop:
            raise ConfigError(
                "a callback set should_epoch_stop, but the records of a step follow from its number alone",
                "set should_training_stop instead, or remove the callback",
            )
        if control.should_log and self._since_log:
            self._log(self._step_logs())
        wishes.save |= control.should_save
        wishes.evaluate |= control.should_evaluate
        wishes.finish |= control.should_training_stop

    def _step_logs(self) -> dict[str, float]:
        """Of the steps since the last log: the mean loss and speed; the rest is the last step's."""
        steps, last = self._since_log, self._since_log[-1]
        logs: dict[str, float] = {
            "loss": sum(step.loss for step in steps) / len(steps),
            "grad_norm": last.grad_norm,
            "learning_rate": last.learning_rate,
            "tokens_per_second": sum(step.tokens for step in steps) / sum(step.seconds for step in steps),
            "host_peak_bytes": last.host_peak_bytes,
        }
        self._since_log = []
        return logs | ({"gpu_peak_bytes": last.gpu_peak_bytes} if last.gpu_peak_bytes else {})

    def _summary(self) -> dict[str, float]:
        seconds, steps = time.perf_counter() - self._started, len(self._losses)
        return {
            "train_runtime": seconds,
            "train_steps_per_second": steps / seconds,
            "train_loss": sum(self._losses) / max(1, steps),
        }

    def _log(self, logs: dict[str, float]) -> None:
        logs["epoch"] = self._state.epoch
        self._state.log_history.append(logs | {"step": self._state.global_step})
        self._tell("on_log", logs=logs)


def _whole(epochs: float) -> int:
    return int(epochs + EPOCH_TOLERANCE)
