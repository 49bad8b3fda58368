"""The generated pages hold everything that the code has."""

import inspect

import make_reference
import pytest
import yaml

from slideformer import errors
from slideformer.settings.config import setting_fields
from slideformer.settings.config_file import SOURCE_PREFIXES
from slideformer.settings.data import Source

COMMANDS = ("train", "plan", "probe", "data", "export", "demo", "doctor", "completion", "report", "generate")


def test_every_setting_is_on_the_settings_page():
    page = make_reference.settings_page()
    for key, field in [*setting_fields(), *setting_fields(Source, SOURCE_PREFIXES[0])]:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        assert field.description and field.description in row.replace("\\|", "|")


def test_every_command_is_on_the_commands_page_without_the_settings():
    page = make_reference.commands_page()
    for command in COMMANDS:
        assert f"## slideformer {command}\n" in page
    assert "learning_rate" not in page


@pytest.mark.parametrize("columns", [None, "40"])
def test_the_commands_page_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: str | None):
    expected = make_reference.commands_page()
    monkeypatch.delenv("COLUMNS", raising=False) if columns is None else monkeypatch.setenv("COLUMNS", columns)
    assert make_reference.commands_page() == expected


def test_every_error_is_on_the_errors_page():
    page = make_reference.errors_page()
    kinds = [name for name, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert kinds and all(f"## {name}\n" in page for name in kinds)


def test_an_example_s_plan_stands_where_a_page_asks_for_it():
    page = make_reference.on_page_markdown("before\n\n<!-- plan of 4b-8gib.yaml -->\n\nafter")
    assert page.startswith("before\n\n```text\nplan: ") and page.endswith("\n```\n\nafter")
    assert "#" not in page


def test_the_site_lists_every_generated_page():
    text = (make_reference.ROOT / "mkdocs.yml").read_text()
    assert all(f": {page}\n" in text for page in make_reference.PAGES)
    assert yaml.safe_load(text)["hooks"] == ["docs/make_reference.py"]
