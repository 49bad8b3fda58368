"""Makes the pictures in docs/img: `python docs/make_pictures.py`.

The report's are of a run with made-up numbers, and say so; the terminal's are what the commands print on this machine.
Needs the packages of the tests, and Chromium for the report's pictures.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from io import StringIO
from itertools import accumulate
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from headless import CHROMIUM, DARK, browse  # noqa: E402
from made_up_runs import write_run  # noqa: E402
from tiny_models import tiny_config  # noqa: E402
from tiny_tokenizers import tiny_tokenizer  # noqa: E402

from slideformer.report.page import write_report  # noqa: E402

IMAGES = ROOT / "docs" / "img"
SCREEN = "1200,1180"  # pixels: the head of the report and its curves
COLUMNS = 100  # of the terminal
# Without the fonts that rich's format loads from the network: an image may not load any, and need not.
SVG_FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
CONFIG = """\
model: a-model
output_dir: runs/chat
data: {path: chat.jsonl, cache_dir: null}
max_length: 256
batch_size: 16
device: cpu
budget: {host: 32GiB}
"""
SHAPE = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        picture_report(Path(directory) / "made-up-run")
        write_job(Path(directory))
        picture_terminal(Path(directory), "plan", "chat.yaml")
        picture_terminal(Path(directory), "data", "chat.yaml")


def picture_report(run: Path) -> None:
    """The head of a report, light and dark."""
    if CHROMIUM is None:
        sys.exit("no Chromium is installed: its package is called chromium or google-chrome")
    page = write_report(write_run(run))
    for name, options in {"report-light": (), "report-dark": (DARK,)}.items():
        browse(page, f"--screenshot={IMAGES / name}.png", f"--window-size={SCREEN}", *options)


def picture_terminal(directory: Path, *words: str) -> None:
    """What a command prints, as an SVG."""
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "slideformer", *words]
    printed = subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    console = Console(record=True, width=COLUMNS, file=StringIO())
    console.print(Text(f"$ slideformer {' '.join(words)}", style="bold"))
    console.print(Text.from_ansi(printed.stdout.rstrip()))
    path = IMAGES / f"{words[0]}.svg"
    console.save_svg(str(path), title=f"slideformer {words[0]}", code_format=SVG_FORMAT, unique_id=words[0])


def write_job(directory: Path) -> None:
    """A config, sums to learn, and the shape of a model of 1.2B parameters; its weights are not read."""
    model = directory / "a-model"
    tiny_config("llama", **SHAPE).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    draw = random.Random(0)
    lines = (json.dumps({"messages": adding(draw)}) for _ in range(400))
    (directory / "chat.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "chat.yaml").write_text(CONFIG, encoding="utf-8")


def adding(draw: random.Random) -> list[dict[str, str]]:
    """A question for a sum, and its answer step by step."""
    terms = [draw.randint(1, 99) for _ in range(2 + min(9, int(draw.expovariate(0.5))))]
    partial = list(accumulate(terms))
    steps = [
        f"{before} plus {term} is {after}"
        for before, term, after in zip(partial[:-1], terms[1:], partial[1:], strict=True)
    ]
    return [
        {"role": "user", "content": f"how much is {' plus '.join(map(str, terms))}?"},
        {"role": "assistant", "content": ", ".join(steps)},
    ]


if __name__ == "__main__":
    main()
