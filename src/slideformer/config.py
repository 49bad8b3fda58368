"""The settings of a run: a YAML file, `--key value` overrides, one validation."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from slideformer.data_settings import Data, EvalData, Section, Source, UserPath
from slideformer.errors import ConfigError
from slideformer.units import parse_bytes

COMMAND_LINE = "command line"
SOURCE_PREFIXES = ("data.sources.", "eval_data.sources.")

# What other trainers call a setting -> what it is called here.
OTHER_NAMES = {
    "model_name_or_path": "model",
    "max_seq_length": "max_length",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size",
    "bf16": "compute_dtype",
    "dataset": "data.path",
    "dataset_path": "data.path",
    "datasets": "data.sources",
    "train_on_inputs": "data.train_on",
    "assistant_only_loss": "data.train_on",
    "val_set_size": "eval_size",
    "val_size": "eval_size",
    "test_size": "eval_size",
    "eval_dataset": "eval_data.path",
    "test_datasets": "eval_data.sources",
    "do_eval": "eval_steps",
    "eval_strategy": "eval_steps",
    "save_best_model": "save_best",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
}


def _checked_size(text: str) -> str:
    parse_bytes(text)
    return text


Size = Annotated[str, AfterValidator(_checked_size)]


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
    export_checkpoints: bool = Field(
        default=False, description="write checkpoint-N/model, a Hugging Face directory, with each checkpoint"
    )
    resume_from_checkpoint: UserPath | None = Field(
        default=None, description="auto: continue from the newest whole checkpoint in output_dir; or a checkpoint"
    )
    seed: int = Field(default=42, ge=0, lt=2**32, description="seed of the data order and of random weights")

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
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="where layers compute (cuda includes ROCm)"
    )
    window_depth: int | None = Field(
        default=None, ge=2, description="layers whose weights are on the GPU at once; null: chosen"
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
    given = parse_overrides(overrides)
    content = _read_yaml(Path(path))
    for key, value in given.items():
        _assign(content, key, value)
    return _validated(content, str(path), given)


def as_config(config: Config | Mapping[str, Any] | str | Path) -> Config:
    """`config` itself, or the settings in a dict (nested as in YAML) or a YAML file.

    Raises:
        ConfigError: as `load_config`.
    """
    if isinstance(config, Config):
        return config
    return load_config(config) if isinstance(config, str | Path) else _validated(config, "config", {})


def setting_fields(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting as (dotted key, field), in the order of declaration."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def expected(field: FieldInfo) -> str:
    """What a setting accepts, in words: "a number >= 0 and < 1", "auto, cuda or cpu", "a path or null"."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    words = " or ".join(_kind_in_words(kind) for kind in kinds if kind is not type(None))
    signs = {Ge: ">= {0.ge}", Gt: "> {0.gt}", Le: "<= {0.le}", Lt: "< {0.lt}"}
    bounds = " and ".join(signs[type(bound)].format(bound) for bound in field.metadata if type(bound) in signs)
    return f"{words} {bounds}".rstrip() + (" or null" if type(None) in kinds else "")


def in_yaml(value: Any) -> str:
    """A value as it is written in YAML: None -> "null", True -> "true", "" -> "''"."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) or "''"


def parse_overrides(words: Sequence[str]) -> dict[str, str | None]:
    """["--seed", "7", "--budget.gpu=8GiB"] -> {"seed": "7", "budget.gpu": "8GiB"}; "null" and "none" become None."""
    given: dict[str, str | None] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{COMMAND_LINE}: {word!r} belongs to no setting", hint="write --key value")
        name, equals, value = word[2:].partition("=")
        key = _known_key(name.replace("-", "_"), COMMAND_LINE)
        if not equals and not queue:
            raise ConfigError(f"{COMMAND_LINE}: --{name} has no value", hint=f"write --{name} VALUE")
        value = value if equals else queue.pop(0)
        given[key] = None if value.lower() in ("null", "none", "~") else value
    return given


def _validated(content: Mapping[str, Any], source: str, given: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise _config_error(error, source, given) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="give the path of a YAML config file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        summary = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {summary}", hint="write one `key: value` a line") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings", hint="write one `key: value` a line, at least `model:`")
    return content


def _assign(content: dict[str, Any], key: str, value: str | None) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(content.get(section), dict):
            content[section] = {}
        content = content[section]
    content[name] = value


def _known_key(key: str, source: str) -> str:
    """`key` itself when it is a setting, else ConfigError naming the nearest one."""
    known = [name for name, _ in setting_fields()]
    for prefix in SOURCE_PREFIXES:
        if key.startswith(prefix):
            known = [prefix + name for name in Source.model_fields]
    if key in known:
        return key
    if members := [name for name in known if name.startswith(f"{key}.")]:
        raise ConfigError(f"{source}: {key} is a group of settings", hint=f"set {', '.join(members)}")
    leaf_to_key = {name.rpartition(".")[2]: name for name in reversed(known)}  # the first of a name
    near = OTHER_NAMES.get(key) or leaf_to_key.get(key)
    near = near or next(iter(difflib.get_close_matches(key, known, n=1)), None)
    hint = f"did you mean {near}?" if near else "`slideformer train --help` lists all settings"
    raise ConfigError(f"{source}: unknown setting {key}", hint=hint)


def _config_error(error: ValidationError, path: str, given: Mapping[str, Any]) -> ConfigError:
    """The first problem pydantic found, in our words; unknown keys first, as they explain missing ones."""
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))  # no place in data.sources
    source = COMMAND_LINE if key in given else path
    if problem["type"] == "conflict":
        message, _, hint = problem["msg"].partition("; ")
        return ConfigError(f"{f'{path} and {COMMAND_LINE}' if given else path}: {message}", hint=hint)
    try:
        _known_key(key, source)
    except ConfigError as unknown:
        return unknown
    return _value_error(problem, key, source)


def _value_error(problem: ErrorDetails, key: str, source: str) -> ConfigError:
    of_sources = [pair for prefix in SOURCE_PREFIXES for pair in setting_fields(Source, prefix)]
    field = dict([*setting_fields(), *of_sources])[key]
    if problem["type"] == "missing":
        return ConfigError(f"{source}: {key} is missing", hint=f"add {key}: {field.description}")
    message = f"{source}: {key} = {in_yaml(problem['input'])}, expected {expected(field)}"
    return ConfigError(message, hint=f"change {key} ({field.description})")


def _conflict(message: str) -> PydanticCustomError:
    return PydanticCustomError("conflict", message)  # type: ignore[arg-type]  # a literal only for static analysis


def _kind_in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *most, last = get_args(kind)
        return f"{', '.join(most)} or {last}"
    if kind is Size:
        return "a size such as 24GiB"
    if get_origin(kind) is list:
        return {Source: "a list of sources"}.get(get_args(kind)[0], "a list of names, texts or patterns")
    base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a name", Path: "a path"}[base]
