"""`slideformer completion SHELL`: the script that lets a shell complete commands, options and settings."""

import argparse
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import shtab
from pydantic.fields import FieldInfo

from slideformer.settings.config import setting_fields


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script for `shell` ("bash", "zsh" or "fish") that completes what `parser` takes.

    Settings are no options of the parser, since the config file is validated with them; here they are made some.
    `parser` is changed by that: it is not to be used for parsing afterwards.
    """
    for command in _commands(parser):
        paths = [action for action in command._actions if action.type is Path]
        for action in paths:
            _complete_with_files(action)
        if any(action.dest == "config" for action in paths):
            _add_settings(command)
    return shtab.complete(parser, shell)


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [command for group in groups for command in group.choices.values()]


def _add_settings(command: argparse.ArgumentParser) -> None:
    for key, field in setting_fields():
        text = (field.description or "").replace("%", "%%")  # argparse takes % for a format
        action = command.add_argument(f"--{key}", help=text, choices=_choices(field))
        if Path in _kinds(field):
            _complete_with_files(action)


def _choices(field: FieldInfo) -> list[str] | None:
    """The words a setting can be, if they can be listed."""
    words = [word for kind in _kinds(field) if get_origin(kind) is Literal for word in get_args(kind)]
    words += ["true", "false"] if bool in _kinds(field) else []
    return words or None


def _kinds(field: FieldInfo) -> list[Any]:
    """The types of a setting, without `Annotated` around them."""
    union = get_origin(field.annotation) in (Union, type(int | None))
    kinds = get_args(field.annotation) if union else (field.annotation,)
    return [getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind for kind in kinds]


def _complete_with_files(action: argparse.Action) -> None:
    action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
