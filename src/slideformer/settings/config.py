"""The settings of a run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from slideformer.settings import config_file, words
from slideformer.settings.data import Data, EvalData, Section, UserPath
from slideformer.settings.words import Size
from slideformer.units import parse_bytes


class Budget(Section):
    """How much of each kind of memory the run may use; null leaves the choice to the planner."""

    gpu: Size | None = Field(default=None, description="GPU memory")
    host: Size | None = Field(default=None, description="host memory")
    disk: Size | None = Field(default=None, description="room for offloaded states in offload_dir")
    offload_dir: UserPath | None = Field(
        default=None, description="directory on a fast local disk for offloaded states"
    )

    @property
    def gpu_bytes(self) -> int | None:
        return None if self.gpu is None else parse_bytes(self.gpu)

    @property
    def host_bytes(self) -> int | None:
        return None if self.host is None else parse_bytes(self.host)

    @property
    def disk_bytes(self) -> int | None:
        return None if self.disk is None else parse_bytes(self.disk)


class Config(Section):
    """All settings of a run. Names and meanings are those of Hugging Face's Trainer where it has them."""

    model: str = Field(min_length=1, description="a Hugging Face model directory or hub id")
    output_dir: UserPath = Field(description="the directory for the trained model and metrics.jsonl")

    max_length: int = Field(default=1024, ge=2, description="longest record, in tokens")
    too_long: Literal["truncate", "drop"] = Field(default="truncate", description="what happens to longer records")
    packing: bool = Field(
        default=False, description="put several records into a row of max_length tokens, each seeing only itself"
    )
    batch_size: int = Field(default=8, ge=1, description="sequences (packed: rows) per optimizer step")
    micro_batch_size: int | None = Field(default=None, ge=1, description="sequences on the GPU at a time; null: chosen")

    learning_rate: float = Field(default=1e-5, ge=0, description="peak learning rate")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay; biases and norm weights are left alone"
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the second moment")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    max_grad_norm: float | None = Field(default=1.0, ge=0, description="clip the gradient to this norm; null or 0: off")

    on_non_finite: Literal["stop", "skip"] = Field(
        default="stop",
        description="a step with a NaN or infinite gradient ends the run, or is left out as if it had not been",
    )
    max_skipped_steps: int = Field(default=3, ge=1, description="steps left out in a row; one more ends the run")

    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="linear", description="learning rate schedule, as transformers.get_scheduler"
    )
    warmup_steps: float = Field(default=0, ge=0, description="steps of linear warm-up; below 1: a share of all steps")
    warmup_ratio: float = Field(default=0.0, ge=0, le=1, description="warm-up as a share of all steps")
    max_steps: int = Field(default=-1, ge=-1, description="optimizer steps in all; -1: as num_train_epochs says")
    num_train_epochs: float = Field(default=1.0, gt=0, description="passes over the data when max_steps is -1")
    logging_steps: int = Field(default=1, ge=1, description="steps between two lines of plain-text progress")
    report_to: list[str] = Field(
        default=[], description="trackers, as in transformers: tensorboard, wandb, trackio, mlflow, ..., or all"
    )
    run_name: str | None = Field(default=None, description="what trackers call the run")
    save_steps: int | None = Field(
        default=None, ge=1, description="steps between two checkpoints; null: none, only the model at the end"
    )
    save_total_limit: int | None = Field(default=None, ge=1, description="checkpoints to keep; null: all")
    save_in_background: bool = Field(
        default=True,
        description="write checkpoints while training goes on, from copies in host memory where the plan has room",
    )
    export_checkpoints: bool = Field(
        default=False, description="write checkpoint-N/model, a Hugging Face directory, with each checkpoint"
    )
    resume_from_checkpoint: UserPath | None = Field(
        default=None, description="auto: continue from the newest whole checkpoint in output_dir; or a checkpoint"
    )
    seed: int = Field(
        default=42,
        ge=0,
        lt=2**32,
        description="seed of the data order, of random weights and of bf16 moments' rounding",
    )

    eval_size: float | None = Field(
        default=None, gt=0, description="records of data held out for evaluation: a share below 1, else how many"
    )
    eval_steps: int | None = Field(
        default=None, ge=1, description="steps between two evaluations; null: only one, at the end"
    )
    eval_on_start: bool = Field(default=False, description="evaluate before the first step as well")
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="stop when so many evaluations in a row did not improve the loss; null: never"
    )
    early_stopping_threshold: float = Field(default=0.0, ge=0, description="by how much the loss has to improve")
    save_best: bool = Field(default=False, description="keep the model of the lowest held-out loss in output_dir/best")
    load_best_model_at_end: bool = Field(
        default=False, description="the model saved at the end is that of the lowest held-out loss"
    )
    sample_prompts: list[str] | UserPath = Field(
        default=[], description="prompts answered before, during and after training; a list, or a file with one a line"
    )
    sample_steps: int | None = Field(
        default=None, ge=1, description="steps between two rounds of sample answers; null: with each evaluation"
    )
    sample_max_new_tokens: int = Field(default=128, ge=1, description="longest sample answer, in tokens")
    sample_temperature: float = Field(default=0.0, ge=0, description="temperature of sample answers; 0: greedy")
    sample_raw: bool = Field(default=False, description="sample prompts are taken as they are, without chat template")

    compute_dtype: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="type the layers compute in; auto: bf16 on an accelerator, fp32 on the CPU"
    )
    optimizer_state: Literal["fp32", "bf16"] = Field(
        default="fp32", description="type AdamW's moments are stored in; bf16: 8 instead of 12 bytes a parameter in all"
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="where layers compute (cuda includes ROCm)"
    )
    window_depth: int | None = Field(
        default=None, ge=2, description="layers whose weights are on the GPU at once; null: chosen"
    )
    resident: int | None = Field(
        default=None, ge=0, description="layers (the first) whose states stay in the GPU's memory; null: chosen"
    )
    kept: int | None = Field(
        default=None, ge=0, description="layers (the last) of which nothing is recomputed in backward; null: chosen"
    )
    kept_outputs: int | None = Field(
        default=None,
        ge=0,
        description="layers (before the kept) of which matrix products are not repeated; null: chosen",
    )
    host_outputs: Annotated[int, Field(ge=0)] | Literal["auto"] | None = Field(
        default=None,
        description="forwards (a layer over a micro-batch) whose matrix products wait in host memory; null: none, "
        "auto: chosen",
    )
    resident_ends: bool | None = Field(
        default=None, description="whether embedding and head stay in the GPU's memory with their states; null: chosen"
    )
    host_boundaries: int | None = Field(
        default=None, ge=0, description="layers (the first) whose inputs wait for backward in host memory; null: chosen"
    )
    disk_blocks: int | None = Field(
        default=None, ge=0, description="layers whose optimizer state is in budget.offload_dir; null: chosen"
    )
    disk_boundaries: int | None = Field(
        default=None, ge=0, description="layers of host_boundaries whose inputs go on to that disk; null: chosen"
    )
    disk_weight_blocks: int | None = Field(
        default=None, ge=0, description="layers of disk_blocks whose weights are there, too; null: chosen"
    )
    gradient_slots: int | None = Field(
        default=None, ge=1, description="layers whose gradients may wait in host memory, not clipped; null: chosen"
    )
    head_shards: int | None = Field(
        default=None, ge=1, description="parts of the vocabulary that the head passes the GPU in; null: chosen"
    )
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="true: recompute every layer in backward; null: keep of its forward what memory allows",
    )
    kernels: Literal["auto", "liger", "torch"] = Field(default="auto", description="norm, rotary and MLP kernels")
    attn_implementation: str | None = Field(
        default=None, description="attention of transformers, such as sdpa or eager; null: its choice for the model"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    parity_check: bool = Field(
        default=True, description="train a tiny copy of the model both ways before the first step"
    )
    init: Literal["pretrained", "random"] = Field(
        default="pretrained", description="random: fresh weights, for benchmarks"
    )

    trainable: list[str] = Field(
        default=[], description="train only parameters whose name one of these regular expressions matches; []: all"
    )
    frozen: list[str] = Field(default=[], description="regular expressions of the names of parameters left as they are")

    budget: Budget = Field(default_factory=Budget, description="memory the run may use")
    data: Data = Field(description="what to train on")
    eval_data: EvalData = Field(default_factory=EvalData, description="what to evaluate on, encoded as data says")

    @field_validator("budget", "eval_data", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value  # `budget:` with every line below commented out

    @field_validator("trainable", "frozen", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value  # on the command line

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_none(cls, value: Any) -> Any:
        """ "none", one name, or several with commas between them, as on the command line."""
        if value is None or value in ("none", ""):
            return []
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("max_grad_norm")
    @classmethod
    def _zero_is_off(cls, value: float | None) -> float | None:
        return value or None

    @property
    def saves_in_background(self) -> bool:
        """Whether checkpoints that are due by themselves let training go on; with an export it stands still."""
        return self.save_in_background and self.save_steps is not None and not self.export_checkpoints

    @property
    def evaluates(self) -> bool:
        """Whether there is held-out data."""
        return bool(self.eval_size or self.eval_data.all_sources())

    @model_validator(mode="after")
    def _evaluation_is_consistent(self) -> "Config":
        needs_data = ("eval_steps", "eval_on_start", "early_stopping_patience", "save_best", "load_best_model_at_end")
        given = next((key for key in needs_data if getattr(self, key)), None)
        if given and not self.evaluates:
            raise _conflict(f"{given} is set, but nothing is held out; set eval_data.path or eval_size")
        if self.eval_size and self.eval_data.all_sources():
            raise _conflict("eval_size and eval_data are both given; keep one")
        if self.early_stopping_patience and not self.eval_steps:
            raise _conflict("early_stopping_patience needs evaluations during training; set eval_steps")
        if same := [str(source.path) for source in self.eval_data.all_sources() if source in self.data.all_sources()]:
            raise _conflict(f"eval_data: {same[0]} is trained on as well; choose another split, or set eval_size")
        if self.sample_steps and not self.sample_prompts:
            raise _conflict("sample_steps is set, but there are no sample_prompts; add sample_prompts")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.max_steps == 0:
            raise _conflict("max_steps = 0 trains nothing; give at least 1, or -1 to train num_train_epochs")
        if self.on_non_finite == "skip" and self.max_grad_norm is None:
            raise _conflict(
                "on_non_finite: skip without clipping, where layers are updated before the whole gradient is known; "
                "set max_grad_norm (a large one clips nothing), or on_non_finite: stop"
            )
        if self.warmup_steps and self.warmup_ratio:
            raise _conflict("warmup_steps and warmup_ratio are both given; keep one")
        if self.micro_batch_size and self.micro_batch_size > self.batch_size:
            sizes = f"micro_batch_size = {self.micro_batch_size} is larger than batch_size = {self.batch_size}"
            raise _conflict(f"{sizes}; make it at most batch_size")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (YAML), apply `overrides` and validate the result once.

    Args:
        path: a YAML file with the keys of `Config`.
        overrides: command-line words, such as ["--data.path", "chat.jsonl", "--seed=7", "--max_grad_norm", "null"].

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is missing or out of range.
    """
    return config_file.read_settings(Path(path), overrides, Config)


def as_config(config: Config | Mapping[str, Any] | str | Path) -> Config:
    """`config` itself, or the settings in a dict (nested as in YAML) or a YAML file.

    Raises:
        ConfigError: as `load_config`.
    """
    if isinstance(config, Config):
        return config
    return (
        load_config(config) if isinstance(config, str | Path) else config_file.validated(config, "config", {}, Config)
    )


def setting_fields(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting as (dotted key, field), in the order of declaration."""
    return words.setting_fields(section, prefix)


def parse_overrides(words: Sequence[str]) -> dict[str, str | None]:
    """["--seed", "7", "--budget.gpu=8GiB"] -> {"seed": "7", "budget.gpu": "8GiB"}; "null" and "none" become None."""
    return config_file.parse_overrides(words, Config)


def _conflict(message: str) -> PydanticCustomError:
    return PydanticCustomError("conflict", message)  # type: ignore[arg-type]  # a literal only for static analysis
