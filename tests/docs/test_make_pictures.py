"""Pictures keep the terminal's colours and load nothing from elsewhere."""

import re
from pathlib import Path

import make_pictures
import pytest
from made_up_runs import write_run
from rich.text import Text

from slideformer.settings.config import load_config

GREEN_WORD = "a \x1b[32mtrained\x1b[0m word"


def test_a_picture_shows_command_and_output_in_color():
    picture = make_pictures.draw("slideformer data x.yaml --samples 2", Text.from_ansi(GREEN_WORD))
    assert "--samples" in picture.replace("&#160;", " ") and ">trained</text>" in picture
    (css_class,) = re.findall(r'class="([\w-]+)"[^>]*>trained<', picture)
    assert re.search(rf"\.{css_class}\s*\{{ fill: #[0-9a-f]+", picture)


@pytest.mark.parametrize("picture", [None, *sorted((make_pictures.DOCS / "img").glob("screen-*.svg"))])
def test_a_picture_needs_nothing_from_the_network(picture: Path | None):
    text = picture.read_text() if picture else make_pictures.draw("slideformer plan", Text.from_ansi(GREEN_WORD))
    assert "@font-face" not in text and not re.search(r"(src|href|url)\W+https?:", text)


def test_the_files_are_those_of_getting_started(tmp_path: Path):
    make_pictures.write_files(tmp_path, tmp_path)
    config = load_config(tmp_path / "config.yaml")
    assert (tmp_path / config.data.path).read_text().count('"messages"') == 6  # type: ignore[operator]
    assert (tmp_path / config.model).is_dir()


def test_every_picture_of_the_script_is_there():
    assert all((make_pictures.DOCS / "img" / name).is_file() for name in [*make_pictures.SCREENS, make_pictures.PANEL])


def test_the_panel_is_that_of_a_run_two_thirds_through(tmp_path: Path):
    directory = write_run(tmp_path / "run")
    picture = make_pictures.draw("slideformer train config.yaml", make_pictures.panel_of(directory)).replace(
        "&#160;", " "
    )
    assert "267 of 400" in picture and "tokens/s" in picture and "optimizer" in picture
