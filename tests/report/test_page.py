"""The page: what it shows, what it leaves out, and that nothing of a run can act in it."""

import json
import re
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import PROMPTS, write_lines, write_run

from slideformer.errors import ConfigError
from slideformer.report.page import write_report

HOSTILE = "<script>alert(1)</script></pre><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"
VOID = {"meta", "link"}
SECTIONS = ["Training", "Evaluation", "Memory", "Time", "Data", "Samples", "Configuration", "Made with"]


class Page(HTMLParser):
    """A page taken apart; fails where an element is closed that is not open."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def texts_in(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]

    @property
    def prose(self) -> str:
        return "\n".join(text for inside, text in self.texts if inside not in ("style", "script"))


def page_of(directory: Path) -> Page:
    return Page(write_report(directory).read_text(encoding="utf-8"))


def test_a_whole_run_has_every_section(tmp_path: Path):
    page = page_of(write_run(tmp_path, steps=100, done=60))
    assert page.texts_in("title")[0] == "A made-up model: stopped after 60 of 100 steps"
    assert page.texts_in("h1") == ["A made-up model"] and page.texts_in("h2") == SECTIONS
    assert [attributes["data-curve"] for tag, attributes in page.tags if "data-curve" in attributes] == [
        "loss", "learning_rate", "grad_norm", "tokens_per_second",
    ]  # fmt: skip
    for words in ("Held-out loss", "weights and optimizer state", "optimizer", "textbooks.jsonl", "2.13.0", *PROMPTS):
        assert words in page.prose
    for answers in PROMPTS.values():
        assert all(answer in page.prose for answer in answers)


def test_the_config_is_shown_as_written_and_whole(tmp_path: Path):
    short, whole = page_of(write_run(tmp_path, steps=3)).texts_in("pre")
    assert "learning_rate: 2.0e-05" in short and "adam_beta1" not in short and "adam_beta1: 0.9" in whole


def test_what_a_run_lacks_is_left_out(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.5}])
    page = page_of(tmp_path)
    assert page.texts_in("h2") == ["Training", "Configuration"]
    assert "This run left no run.json" in page.prose


def test_a_run_before_its_first_step(tmp_path: Path):
    page = page_of(write_run(tmp_path, steps=3, done=0))
    assert "No step has been recorded yet." in page.prose and page.texts_in("h2")[:3] == SECTIONS[:3]


def test_what_the_plan_chose_may_be_anything(tmp_path: Path):
    sizes = {"window_depth": 12345, "resident_layers": ["a", "b"], "tied": True}
    (tmp_path / "run.json").write_text(json.dumps({"plan": {"sizes": sizes, "host_bytes": {"weights": 3}}}))
    page = page_of(tmp_path)
    assert "window depth" in page.texts_in("dt") and {"12,345", "['a', 'b']", "True"} <= set(page.texts_in("dd"))


def test_gaps_are_told(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", ({"step": n, "loss": None if n > 3 else 2.0} for n in range(1, 6)))
    assert "No finite value in 2 steps, the first of them step 4." in page_of(tmp_path).prose


def test_nothing_of_a_run_becomes_markup(tmp_path: Path):
    plain = page_of(write_run(tmp_path, steps=3))
    record: dict[str, Any] = json.loads((tmp_path / "run.json").read_text())
    record["config"] |= {"model": HOSTILE, "more": HOSTILE, HOSTILE: 1}
    record["versions"] = {HOSTILE: HOSTILE} | record["versions"]
    record["machine"]["name"] = record["model"]["architecture"] = record["started"] = HOSTILE
    record["data"]["sources"] = [HOSTILE, HOSTILE]
    record["plan"]["host_bytes"] = {HOSTILE: 7}
    record["plan"]["device_bytes"][HOSTILE] = {HOSTILE: 7}
    record["plan"]["sizes"] = {HOSTILE: 7}
    (tmp_path / "run.json").write_text(json.dumps(record))
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1, "seconds": 1, f"{HOSTILE}_seconds": 1}])
    write_lines(tmp_path / "samples.jsonl", [{"step": 0, "prompt": HOSTILE, "answer": HOSTILE}] * 3)
    page = page_of(tmp_path)

    def active(page: Page) -> list[tuple[str, dict[str, str | None]]]:
        return [(tag, attributes) for tag, attributes in page.tags if tag in ("script", "img", "iframe", "a", "style")]

    assert active(page) == active(plain) and len(active(page)) == 3
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.prose.count(HOSTILE) > 10 and "49" not in page.texts_in("h3")


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"machine": {"name": "\\ud83d"}}')
    assert "Made with" in page_of(tmp_path).texts_in("h2")


def test_the_page_needs_no_network(tmp_path: Path):
    page = page_of(write_run(tmp_path, steps=30))
    text = (tmp_path / "report.html").read_text()
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    links = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert links == ["data:,"]


def test_drawings_tables_and_headings_can_be_listened_to(tmp_path: Path):
    page = page_of(write_run(tmp_path, steps=30))
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        if tag == "svg":
            names = (attributes.get("aria-labelledby") or "").split()
            assert attributes["role"] == "img" and (attributes.get("aria-label") or (names and set(names) <= set(ids)))
    assert len(page.texts_in("caption")) == sum(tag == "table" for tag, _ in page.tags)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("theme", [0, 1])
def test_texts_and_lines_stand_out_from_the_paper(theme: int):
    sheet = (resources.files("slideformer.report") / "page.css").read_text()
    colours = {m[1]: m.group(2, 3)[theme] for m in re.finditer(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", sheet)}
    papers = [luminance(colours[name]) for name in ("paper", "raised")]
    for name, least in {"ink": 4.5, "quiet": 4.5, "blue": 3, "orange": 3, "green": 3}.items():  # WCAG 2.2, level AA
        text = luminance(colours[name])
        for paper in papers:
            assert (max(text, paper) + 0.05) / (min(text, paper) + 0.05) >= least, name


def luminance(colour: str) -> float:
    """Relative luminance of '#rrggbb', as WCAG defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_hundred_thousand_steps_stay_below_a_megabyte(tmp_path: Path):
    draw = (((n * 7919) % 1000) / 1000 for n in range(1, 100_001))
    keys = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds")
    write_lines(
        tmp_path / "metrics.jsonl", ({"step": n, **dict.fromkeys(keys, 1 + x)} for n, x in enumerate(draw, start=1))
    )
    assert write_report(tmp_path).stat().st_size < 500_000


def test_a_file_that_cannot_be_written(tmp_path: Path):
    write_run(tmp_path, steps=3)
    with pytest.raises(ConfigError, match=r"cannot write .*nowhere/report.html: No such file"):
        write_report(tmp_path, tmp_path / "nowhere" / "report.html")
