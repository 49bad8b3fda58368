"""What several commands take: a config with its settings, numbers within bounds."""

import argparse
import shutil
import textwrap
from pathlib import Path
from typing import TypeAlias

from pydantic_core import PydanticUndefined

from slideformer.errors import ConfigError
from slideformer.settings.config import setting_fields
from slideformer.settings.words import expected, in_yaml

CONFIG_USAGE = "slideformer {} CONFIG.yaml [--key value ...]"
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def config_command(commands: Commands, name: str, summary: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        usage=CONFIG_USAGE.format(name),
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("config", metavar="CONFIG.yaml", type=Path, help="settings of the run")
    return command


def _settings_help() -> str:
    """Every setting with its default and its meaning."""
    width = min(shutil.get_terminal_size().columns, 120)
    lines = ["settings, in CONFIG.yaml or as --key value (which wins), with their defaults:"]
    for key, field in setting_fields():
        default = "required" if field.default is PydanticUndefined else in_yaml(field.default)
        text = f"{field.description} ({expected(field)})"
        lines += textwrap.wrap(
            f"{key:<20} {default:<12} {text}", width, initial_indent="  ", subsequent_indent=" " * 36
        )
    return "\n".join(lines)


def no_overrides(words: list[str]) -> None:
    if words:
        raise ConfigError(f"command line: {words[0]!r} is not known", hint="add --help to see what the command takes")


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return value


def not_negative(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def probability(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and up to 1")
    return value
