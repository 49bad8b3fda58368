"""The page in a browser: its script runs, it fits narrow screens, and it is light or dark as the system is."""

import html
import re
from pathlib import Path

import pytest
from headless import CHROMIUM, DARK, browse
from made_up_runs import write_lines, write_run

from slideformer.report.page import write_report

NARROWEST = 380  # pixels

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


def root_element(dom: str) -> str:
    found = re.search(r"<html[^>]*>", dom)
    assert found
    return found[0]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return write_report(write_run(tmp_path / "run", steps=120))


def test_the_script_runs_to_its_end(report: Path):
    dom = browse(report, "--dump-dom")
    assert 'data-ready="yes"' in root_element(dom)
    assert re.search(r'<button id="theme" type="button">Dark</button>', dom)


def test_the_script_runs_on_a_page_without_charts(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [])
    assert 'data-ready="yes"' in root_element(browse(write_report(tmp_path), "--dump-dom"))


PROBE = """
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const result = document.documentElement.dataset;
  result.width = page.documentElement.scrollWidth;
  const plot = page.querySelector(".plot"), box = plot.getBoundingClientRect();
  const read = () => [...page.querySelectorAll("output")].map((output) => output.textContent);
  plot.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right }));
  result.pointed = read().join("; ");
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
  result.home = read()[0];
  plot.dispatchEvent(new PointerEvent("pointerleave"));
  result.rested = read()[0];
  page.getElementById("theme").click();
  result.theme = page.documentElement.dataset.theme;
});
</script>
"""


def test_a_narrow_page_with_a_reader_who_points_and_clicks(report: Path, tmp_path: Path):
    inner = html.escape(report.read_text(encoding="utf-8"))
    frame = tmp_path / "frame.html"
    frame.write_text(f'<!doctype html><html>{PROBE}<iframe width={NARROWEST} height=900 srcdoc="{inner}"></iframe>')
    root = root_element(browse(frame, "--dump-dom"))
    assert f'data-width="{NARROWEST}"' in root  # nothing makes the page scroll sideways
    assert root.count("step 120: ") == 4  # one chart is pointed at, all of them answer
    assert "held-out" in root and 'data-home="step 1: ' in root and 'data-rested="last step: ' in root
    assert 'data-theme="dark"' in root


@pytest.mark.parametrize("width", [1200, 500])
def test_light_and_dark_screens_differ(report: Path, tmp_path: Path, width: int):
    screens = []
    for name, options in {"light": (), "dark": (DARK,)}.items():
        screen = tmp_path / f"{name}.png"
        browse(report, f"--screenshot={screen}", f"--window-size={width},1400", *options)
        screens.append(screen.read_bytes())
    assert screens[0] != screens[1] and all(len(screen) > 20_000 for screen in screens)
