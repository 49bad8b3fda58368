"""Settings from a YAML file and `--key value` words, validated once, with errors that name the nearest setting."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from slideformer.errors import ConfigError
from slideformer.settings.data import Section, Source
from slideformer.settings.words import expected, in_yaml, setting_fields

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

Settings = TypeVar("Settings", bound=Section)


def read_settings(path: Path, overrides: Sequence[str], settings: type[Settings]) -> Settings:
    """What a YAML file says, with the words of the command line on top.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is missing or out of range.
    """
    given = parse_overrides(overrides, settings)
    content = _read_yaml(path)
    for key, value in given.items():
        _assign(content, key, value)
    return validated(content, str(path), given, settings)


def parse_overrides(words: Sequence[str], settings: type[Section]) -> dict[str, str | None]:
    """["--seed", "7", "--budget.gpu=8GiB"] -> {"seed": "7", "budget.gpu": "8GiB"}; "null" and "none" become None."""
    given: dict[str, str | None] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{COMMAND_LINE}: {word!r} belongs to no setting", hint="write --key value")
        name, equals, value = word[2:].partition("=")
        key = _known_key(name.replace("-", "_"), COMMAND_LINE, settings)
        if not equals and not queue:
            raise ConfigError(f"{COMMAND_LINE}: --{name} has no value", hint=f"write --{name} VALUE")
        value = value if equals else queue.pop(0)
        given[key] = None if value.lower() in ("null", "none", "~") else value
    return given


def validated(content: Mapping[str, Any], source: str, given: Mapping[str, Any], settings: type[Settings]) -> Settings:
    try:
        return settings.model_validate(content)
    except ValidationError as error:
        raise _config_error(error, source, given, settings) from None


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


def _known_key(key: str, source: str, settings: type[Section]) -> str:
    """`key` itself when it is a setting, else ConfigError naming the nearest one."""
    known = [name for name, _ in setting_fields(settings)]
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


def _config_error(error: ValidationError, path: str, given: Mapping[str, Any], settings: type[Section]) -> ConfigError:
    """The first problem pydantic found, in our words; unknown keys first, as they explain missing ones."""
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))  # no place in data.sources
    source = COMMAND_LINE if key in given else path
    if problem["type"] == "conflict":
        message, _, hint = problem["msg"].partition("; ")
        return ConfigError(f"{f'{path} and {COMMAND_LINE}' if given else path}: {message}", hint=hint)
    try:
        _known_key(key, source, settings)
    except ConfigError as unknown:
        return unknown
    return _value_error(problem, key, source, settings)


def _value_error(problem: ErrorDetails, key: str, source: str, settings: type[Section]) -> ConfigError:
    of_sources = [pair for prefix in SOURCE_PREFIXES for pair in setting_fields(Source, prefix)]
    field = dict([*setting_fields(settings), *of_sources])[key]
    if problem["type"] == "missing":
        return ConfigError(f"{source}: {key} is missing", hint=f"add {key}: {field.description}")
    message = f"{source}: {key} = {in_yaml(problem['input'])}, expected {expected(field)}"
    return ConfigError(message, hint=f"change {key} ({field.description})")
