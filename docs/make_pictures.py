"""Pictures of the terminal for the pages: runs commands on getting-started.md's own files and draws what they print.

python docs/make_pictures.py MODEL_DIRECTORY     # SmolLM2-135M-Instruct, as `slideformer.demo.assets` makes it
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType
from rich.terminal_theme import MONOKAI
from rich.text import Text

from slideformer.listeners.metrics import RunRecord
from slideformer.listeners.panel import RunView
from slideformer.listeners.run_directory import METRICS, RUN, read_metrics

DOCS = Path(__file__).parent
COLUMNS = 92
SCREENS = {
    "screen-data.svg": ("data", "config.yaml", "--samples", "2"),
    "screen-plan.svg": ("plan", "config.yaml"),
}
PANEL, PANEL_SHARE = "screen-train.svg", 2 / 3  # the live panel, when so much of the run is done
FONT_FACE = re.compile(r"@font-face\s*\{.*?\}\s*", re.DOTALL)  # rich's fonts come from the network


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        write_files(Path(directory), Path(sys.argv[1]).resolve())
        for name, words in SCREENS.items():
            output = _run(words, directory)
            _write(name, draw(f"slideformer {' '.join(words)}", Text.from_ansi(output.rstrip())))
        _run(("train", "config.yaml"), directory)
        _write(PANEL, draw("slideformer train config.yaml", panel_of(Path(directory) / "runs/pip")))


def write_files(directory: Path, model: Path) -> None:
    """chat.jsonl and config.yaml as getting-started.md shows them, beside a link to the model."""
    page = (DOCS / "getting-started.md").read_text(encoding="utf-8")
    for language, name in (("json", "chat.jsonl"), ("yaml", "config.yaml")):
        (block,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        (directory / name).write_text(block, encoding="utf-8")
    (directory / "smollm2").symlink_to(model)


def panel_of(output_dir: Path) -> RunView:
    """The live panel as it was in the course of a finished run, made of what the run wrote."""
    steps = read_metrics(output_dir / METRICS)
    done = steps[: max(1, round(len(steps) * PANEL_SHARE))]
    record = RunRecord(**json.loads((output_dir / RUN).read_text(encoding="utf-8")))
    view = RunView(record, 0, time.perf_counter() - sum(step.seconds for step in done))
    for step in done:
        view.add(step)
    return view


def draw(command: str, output: RenderableType) -> str:
    """An SVG of a terminal in which `command` printed `output`; it needs no font from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
    console.print(output)
    picture = console.export_svg(title="slideformer", theme=MONOKAI, unique_id=re.sub(r"\W+", "-", command))
    return FONT_FACE.sub("", picture)


def _write(name: str, picture: str) -> None:
    (DOCS / "img" / name).write_text(picture, encoding="utf-8")
    print(DOCS / "img" / name)


def _run(words: tuple[str, ...], directory: str) -> str:
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    command = [sys.executable, "-m", "slideformer", *words]
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return result.stdout


if __name__ == "__main__":
    main()
