"""The reference pages, made from the code whenever the site is built (hooks of mkdocs; nothing is written to docs/).

Settings come from `slideformer.settings.config`, commands from the argument parser, errors from `slideformer.errors`,
examples and the changelog from their files.
"""

import argparse
import inspect
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from slideformer import errors
from slideformer.cli import command_line
from slideformer.settings.config import setting_fields
from slideformer.settings.config_file import SOURCE_PREFIXES
from slideformer.settings.data import Source
from slideformer.settings.words import expected, in_yaml

if TYPE_CHECKING:
    from mkdocs.structure.files import Files  # pyright: ignore[reportMissingImports]  # only where the site is built

ROOT = Path(__file__).parent.parent
PLAN_HERE = re.compile(r"<!-- plan of (\S+) -->")
PLAN_MARKS = ("# --- plan", "# --- end of plan")
HELP_COLUMNS = "100"
GROUP_TITLES = {
    "": "The run", "budget": "Budget", "data": "Data", "eval_data": "Held-out data",
    "data.sources": "One of several sources",
}  # fmt: skip


def on_files(files: "Files", config: Any) -> "Files":
    """Adds the pages to the site; mkdocs calls this."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]  # only where the site is built

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts an example's plan where a page says `<!-- plan of NAME.yaml -->`; mkdocs calls this."""
    return PLAN_HERE.sub(lambda place: f"```text\n{_plan_in(place[1])}\n```", markdown)


def _plan_in(example: str) -> str:
    lines = (ROOT / "examples" / example).read_text(encoding="utf-8").splitlines()
    start, end = (next(i for i, line in enumerate(lines) if line.startswith(mark)) for mark in PLAN_MARKS)
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[start + 1 : end])


def settings_page() -> str:
    """Every setting with its default, what it takes and what it means, a table for each group."""
    rows: dict[str, list[str]] = {}
    for key, field in [*setting_fields(), *setting_fields(Source, SOURCE_PREFIXES[0])]:
        rows.setdefault(key.rpartition(".")[0], []).append(_setting_row(key, field))
    head = "| setting | default | takes | meaning |\n|---|---|---|---|\n"
    groups = [f"## {GROUP_TITLES.get(group, group)}\n\n{head}{''.join(lines)}" for group, lines in rows.items()]
    return "\n".join([
        "# Settings\n",
        "In `CONFIG.yaml`, or on the command line as `--key value`, which wins. A dot is a level of YAML:",
        "`--budget.gpu 8GiB` is `budget: {gpu: 8GiB}`. Names are those of Hugging Face's `TrainingArguments` where it",
        "has them; a misspelt one is refused, and the nearest is named.\n",
        *groups,
    ])  # fmt: skip


def _setting_row(key: str, field: FieldInfo) -> str:
    default = "*required*" if field.default is PydanticUndefined else f"`{in_yaml(field.default)}`"
    cells = (f"`{key}`", default, expected(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def commands_page() -> str:
    """What each command prints for --help, without the list of settings."""
    previous = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = HELP_COLUMNS  # what argparse wraps to
    try:
        parser = command_line()
        sections = [_help_section(parser), *(_help_section(command) for command in _commands(parser))]
    finally:
        os.environ.pop("COLUMNS") if previous is None else os.environ.update(COLUMNS=previous)
    after = (
        "`train`, `plan` and `data` take every [setting](settings.md) as `--key value`, too.\n\n"
        "A command ends with 0; with 1 when it was refused or failed, and says why; with 2 when it was typed wrongly;\n"
        "with 130 after Ctrl-C. `SLIDEFORMER_TRACEBACK=1` shows an error with its traceback.\n"
    )
    return "\n".join(["# Commands\n", after, *sections])


def _help_section(parser: argparse.ArgumentParser) -> str:
    parser.epilog = None
    return f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n"


def _commands(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [command for group in groups for command in group.choices.values()]


def errors_page() -> str:
    """Every error class with its docstring."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    kinds.sort(key=lambda kind: inspect.getsourcelines(kind)[1])
    sections = [f"## {kind.__name__}\n\n{_without_arguments(inspect.getdoc(kind) or '')}\n" for kind in kinds]
    return "\n".join([
        "# Errors\n",
        "Whatever the program refuses on purpose is one of these, from `slideformer.errors`. The message names the",
        "cause and the place, and `hint` the remedy; the command line prints both. What to do about the common ones:",
        "[troubleshooting](../how-to/troubleshooting.md).\n",
        *sections,
    ])  # fmt: skip


def _without_arguments(docstring: str) -> str:
    return docstring.partition("\n\nArgs:")[0]


def examples_page() -> str:
    """The files of examples/."""
    files = sorted((ROOT / "examples").glob("*.yaml"))
    sections = [f"## {path.name}\n\n```yaml\n{path.read_text(encoding='utf-8')}```\n" for path in files]
    about = (
        "Most begin with their plan, as the planner makes it for the budgets at the end. The GPU's figures in it are\n"
        "estimated without one; `slideformer plan` measures them on yours.\n"
    )
    return "\n".join(["# Examples\n", about, *sections])


def changelog_page() -> str:
    """CHANGELOG.md."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/commands.md": commands_page,
    "reference/errors.md": errors_page,
    "examples.md": examples_page,
    "changelog.md": changelog_page,
}
