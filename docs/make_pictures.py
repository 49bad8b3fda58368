"""Pictures of the terminal for the pages: runs commands on getting-started.md's own files and draws what they print.

python docs/make_pictures.py MODEL_DIRECTORY     # SmolLM2-135M-Instruct, as `slideformer.demo.assets` makes it
"""

import os
import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

DOCS = Path(__file__).parent
COLUMNS = 92
SCREENS = {
    "screen-data.svg": ("data", "config.yaml", "--samples", "2"),
    "screen-plan.svg": ("plan", "config.yaml"),
}
FONT_FACE = re.compile(r"@font-face\s*\{.*?\}\s*", re.DOTALL)  # rich's fonts come from the network


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        write_files(Path(directory), Path(sys.argv[1]).resolve())
        for name, words in SCREENS.items():
            output = _run(words, directory)
            (DOCS / "img" / name).write_text(draw(f"slideformer {' '.join(words)}", output), encoding="utf-8")
            print(DOCS / "img" / name)


def write_files(directory: Path, model: Path) -> None:
    """chat.jsonl and config.yaml as getting-started.md shows them, beside a link to the model."""
    page = (DOCS / "getting-started.md").read_text(encoding="utf-8")
    for language, name in (("json", "chat.jsonl"), ("yaml", "config.yaml")):
        (block,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        (directory / name).write_text(block, encoding="utf-8")
    (directory / "smollm2").symlink_to(model)


def draw(command: str, output: str) -> str:
    """An SVG of a terminal in which `command` printed `output` (with ANSI colours); it needs no font from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=StringIO())
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
    console.print(Text.from_ansi(output.rstrip()))
    picture = console.export_svg(title="slideformer", theme=MONOKAI, unique_id=re.sub(r"\W+", "-", command))
    return FONT_FACE.sub("", picture)


def _run(words: tuple[str, ...], directory: str) -> str:
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    command = [sys.executable, "-m", "slideformer", *words]
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return result.stdout


if __name__ == "__main__":
    main()
