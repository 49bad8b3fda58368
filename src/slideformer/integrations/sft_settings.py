"""TRL's and transformers' training arguments -> the settings of a run. What cannot be honoured is refused by name."""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback

from slideformer.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainingArguments

SAME_NAME = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "warmup_steps", "max_steps",
    "num_train_epochs", "save_total_limit", "report_to", "run_name", "eval_on_start",
)  # fmt: skip

# Read by `run_settings`, or by the trainer when it encodes the data.
HONOURED = {
    *SAME_NAME, "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm",
    "lr_scheduler_type", "logging_steps", "save_strategy", "save_steps", "seed", "data_seed", "bf16", "use_cpu",
    "optim", "train_sampling_strategy", "per_device_eval_batch_size", "max_length", "model_init_kwargs",
    "trust_remote_code", "dataset_text_field", "dataset_num_proc", "shuffle_dataset", "completion_only_loss",
    "assistant_only_loss", "eos_token", "router_aux_loss_coef", "packing", "packing_strategy", "eval_strategy",
    "eval_steps", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
}  # fmt: skip

# They decide speed, memory or messages, and the engine decides these itself; none changes what is trained.
WITHOUT_EFFECT = {
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", "activation_offloading", "use_liger_kernel", "liger_kernel_config", "use_cache",
    "torch_empty_cache_steps", "auto_find_batch_size", "average_tokens_across_devices", "padding_free",
    "pad_to_multiple_of", "eval_packing", "pad_token", "do_train", "do_eval", "do_predict",
    "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "logging_first_step",
    "logging_nan_inf_filter", "include_num_input_tokens_seen", "save_only_model", "save_on_each_node",
    "prediction_loss_only", "remove_unused_columns", "skip_memory_metrics", "local_rank", "ddp_timeout",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "hub_token", "resume_from_checkpoint",
    "accelerator_config",
}  # fmt: skip

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
MODEL_INIT_KWARGS = ("attn_implementation", "trust_remote_code", "dtype", "torch_dtype")


def refuse_what_changes_training(args: "TrainingArguments") -> None:
    """Every argument that is neither honoured nor without effect must be as it is by default.

    Raises:
        ConfigError: names the argument.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arguments that will be renamed
        default = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu)
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name not in HONOURED | WITHOUT_EFFECT and value != getattr(default, field.name):
            raise _refused(field.name, value, "is not supported", f"leave {field.name} out")


def run_settings(args: "TrainingArguments", records: int) -> dict[str, Any]:
    """The settings under which a run trains as `args` say.

    Args:
        records: of the training data; decides how many steps an epoch has.

    Raises:
        ConfigError: names the argument that cannot be honoured.
    """
    refuse_what_changes_training(args)
    if args.world_size > 1:
        raise _refused("world_size", args.world_size, "is more than one process", "start the script with plain python")
    batch_size = args.train_batch_size * args.gradient_accumulation_steps  # of all GPUs that transformers would use
    init = model_init_kwargs(args)
    return {
        **{name: getattr(args, name) for name in SAME_NAME},
        "output_dir": args.output_dir,
        "batch_size": batch_size,
        "max_grad_norm": args.max_grad_norm or None,
        "lr_scheduler_type": _one_of("lr_scheduler_type", args.lr_scheduler_type, SCHEDULES),
        "logging_steps": _whole("logging_steps", args.logging_steps),
        **_packing(args),
        **_evaluation(args, -(-records // batch_size)),
        "save_steps": _steps_of(args, "save", -(-records // batch_size), ("no", "steps", "epoch", "best")),
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "compute_dtype": "bf16" if args.bf16 else "fp32",
        "device": "cpu" if args.use_cpu else "auto",
        "attn_implementation": init.get("attn_implementation"),
        "trust_remote_code": bool(init.get("trust_remote_code", getattr(args, "trust_remote_code", False))),
    }


def is_shuffled(args: "TrainingArguments") -> bool:
    """Whether records are drawn in a new order each epoch: by this project's generator, not by PyTorch's sampler."""
    return _one_of("train_sampling_strategy", args.train_sampling_strategy, ("random", "sequential")) == "random"


def model_init_kwargs(args: "TrainingArguments") -> dict[str, Any]:
    """How the model is to be loaded. A dtype is accepted: masters are fp32 here whatever it says."""
    given = getattr(args, "model_init_kwargs", None) or {}
    if unknown := [name for name in given if name not in MODEL_INIT_KWARGS]:
        raise _refused(f"model_init_kwargs[{unknown[0]!r}]", given[unknown[0]], "is not supported", "leave it out")
    return given


def check_optimizer(args: "TrainingArguments") -> None:
    """AdamW in any of its implementations computes the same."""
    _one_of("optim", args.optim, ("adamw_torch", "adamw_torch_fused"))


def check_router(args: "TrainingArguments", model_config: Any) -> None:
    """TRL adds the load-balancing loss that a model's configuration declares; here there is none."""
    given = getattr(args, "router_aux_loss_coef", None)
    declared = getattr(model_config.get_text_config(), "router_aux_loss_coef", None)
    if (declared if given is None else given) or 0:
        value = declared if given is None else given
        raise _refused("router_aux_loss_coef", value, "is not trained", "set router_aux_loss_coef=0.0")


def early_stopping(args: "TrainingArguments", callback: EarlyStoppingCallback) -> dict[str, Any]:
    """The settings that do what transformers' callback does, and go on doing it in a resumed run."""
    if strategy_of(args, "eval") == "no":
        raise _refused("eval_strategy", "no", "leaves EarlyStoppingCallback nothing to see", "set steps or epoch")
    return {
        "early_stopping_patience": callback.early_stopping_patience,
        "early_stopping_threshold": callback.early_stopping_threshold or 0.0,
    }


def _packing(args: "TrainingArguments") -> dict[str, Any]:
    if not getattr(args, "packing", False):
        return {}
    _one_of("packing_strategy", getattr(args, "packing_strategy", None), ("bfd",))
    if getattr(args, "max_length", None) is None:
        raise _refused("max_length", None, "is no length for packed rows", "give a number of tokens")
    for what in ("save", "eval"):  # records are packed anew in each epoch
        if strategy_of(args, what) == "epoch":
            raise _refused(f"{what}_strategy", "epoch", "is not a fixed number of steps with packing", "choose steps")
    return {"packing": True}


def _evaluation(args: "TrainingArguments", steps_per_epoch: int) -> dict[str, Any]:
    """As transformers, the loop evaluates after the last step as well. The best model is that of any evaluation."""
    eval_steps = _steps_of(args, "eval", steps_per_epoch, ("no", "steps", "epoch"))
    if eval_steps is None:
        return {"eval_on_start": False}
    best_is_saved = strategy_of(args, "save") == "best"
    if args.load_best_model_at_end or best_is_saved:
        _one_of("metric_for_best_model", args.metric_for_best_model, ("loss", "eval_loss"))
        if args.greater_is_better:
            raise _refused("greater_is_better", True, "is not the sense of a loss", "leave greater_is_better out")
    if args.load_best_model_at_end and not best_is_saved and args.save_steps != args.eval_steps:
        message = "leaves evaluated models unsaved, of which one may be the best"
        raise _refused("save_steps", args.save_steps, message, f"set save_steps={args.eval_steps}, as eval_steps")
    return {
        "eval_steps": eval_steps, "save_best": best_is_saved, "load_best_model_at_end": args.load_best_model_at_end,
    }  # fmt: skip


def _steps_of(args: "TrainingArguments", what: str, steps_per_epoch: int, accepted: tuple[str, ...]) -> int | None:
    """Steps between two savings or evaluations; None: none, or not by steps."""
    strategy = _one_of(f"{what}_strategy", getattr(args, f"{what}_strategy"), accepted)
    if strategy == "epoch":
        return steps_per_epoch
    return _whole(f"{what}_steps", getattr(args, f"{what}_steps")) if strategy == "steps" else None


def strategy_of(args: "TrainingArguments", what: str) -> str:
    """When to "save" or "eval": "no", "steps", "epoch" or "best"."""
    return _name_of(getattr(args, f"{what}_strategy"))


def _name_of(value: Any) -> str:
    """An enumeration's member as it is written in a script."""
    return str(getattr(value, "value", value))


def _whole(name: str, value: float) -> int:
    if value < 1 or value != int(value):
        raise _refused(name, value, "is not a number of steps", "give a whole number of steps")
    return int(value)


def _one_of(name: str, value: Any, accepted: tuple[str, ...]) -> str:
    text = _name_of(value)
    if text not in accepted:
        raise _refused(name, text, "is not supported", f"choose from {', '.join(accepted)}")
    return text


def _refused(name: str, value: Any, why: str, remedy: str) -> ConfigError:
    return ConfigError(f"{name} = {value!r} {why}", remedy)
