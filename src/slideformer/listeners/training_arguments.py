"""A run's settings as transformers' callbacks expect them."""

import math
from typing import TYPE_CHECKING, Any

from slideformer.listeners.metrics import RunRecord

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

SAME_NAME = (
    "output_dir", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type",
    "max_steps", "num_train_epochs", "logging_steps", "save_total_limit", "seed", "run_name",
)  # fmt: skip


def training_arguments(run: RunRecord) -> "TrainingArguments":
    """The settings of a run, as far as transformers has a name for them.

    Batch sizes are those of the plan, evaluation and saving happen by steps or not at all, and the metric of the best
    model is the held-out loss.
    """
    from transformers import TrainingArguments

    config, sizes = run.config, run.plan["sizes"]
    return TrainingArguments(
        **{name: config[name] for name in SAME_NAME},
        warmup_steps=config["warmup_steps"] or config.get("warmup_ratio", 0),  # below 1: a share of all steps
        per_device_train_batch_size=sizes["micro_batch_size"],
        gradient_accumulation_steps=sizes["micro_batches"],
        max_grad_norm=config["max_grad_norm"] or 0.0,
        **_every("eval", config.get("eval_steps")),
        **_every("save", config["save_steps"]),
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        bf16=False,  # of autocast, which is not used
        use_cpu=run.machine["device_bytes"] is None,
        report_to=[],
    )


def trainer_state(run: RunRecord, arguments: "TrainingArguments", done_steps: int) -> "TrainerState":
    """The state of a run of which `done_steps` are done; its log history begins empty, also when it is resumed."""
    from transformers import TrainerState

    state = TrainerState(
        global_step=done_steps,
        max_steps=run.steps,
        num_train_epochs=math.ceil(run.config["num_train_epochs"]),
        train_batch_size=arguments.per_device_train_batch_size,
    )
    state.compute_steps(arguments, run.steps)
    return state


def _every(what: str, steps: int | None) -> dict[str, Any]:
    return {f"{what}_strategy": "steps", f"{what}_steps": steps} if steps else {f"{what}_strategy": "no"}
