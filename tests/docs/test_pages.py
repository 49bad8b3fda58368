"""Links of the pages outside the site, and the configurations that pages show; mkdocs checks the site's own links."""

import re
from pathlib import Path

import pytest
import yaml

from slideformer.settings.config import Config, setting_fields

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
SITE = sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)")
YAML_BLOCK = re.compile(r"^( *)```yaml\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def configurations(page: Path) -> list[dict]:
    """The whole configurations in a page: YAML blocks with the two settings that every run needs."""
    blocks = [yaml.safe_load(re.sub(f"^{indent}", "", text, flags=re.M)) for indent, text in
              YAML_BLOCK.findall(page.read_text(encoding="utf-8"))]  # fmt: skip
    return [block for block in blocks if isinstance(block, dict) and {"model", "output_dir"} <= set(block)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, *SITE], ids=lambda page: str(page.relative_to(ROOT)))
def test_configurations_in_the_pages_are_valid(page: Path):
    for configuration in configurations(page):
        Config.model_validate(configuration)


def test_the_configurations_are_found():
    assert configurations(ROOT / "README.md") and configurations(ROOT / "docs/getting-started.md")
    assert configurations(ROOT / "docs/comparison.md")


def test_the_translation_from_trl_names_settings():
    rows = (ROOT / "docs/how-to/trl.md").read_text(encoding="utf-8").splitlines()
    (same,) = (row for row in rows if "the same names" in row)
    assert set(re.findall(r"`(\w+)`", same)) <= {key for key, _ in setting_fields()}


def test_troubleshooting_is_headed_by_words_of_messages():
    text = (ROOT / "docs/how-to/troubleshooting.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    headings = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert len(headings) > 10 and [words for words in headings if words not in source] == []
