"""Makes docs/img/report-light.png and report-dark.png: `python docs/make_report_pictures.py`.

The head of a report of a run with made-up numbers, which it says. Needs the packages of the tests, and Chromium.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from headless import CHROMIUM, DARK, browse  # noqa: E402
from made_up_runs import write_run  # noqa: E402

from slideformer.report.page import write_report  # noqa: E402

IMAGES = ROOT / "docs" / "img"
SCREEN = "1200,1180"  # pixels: the head of the report and its curves


def main() -> None:
    if CHROMIUM is None:
        sys.exit("no Chromium is installed: its package is called chromium or google-chrome")
    with tempfile.TemporaryDirectory() as directory:
        page = write_report(write_run(Path(directory) / "made-up-run"))
        for name, options in {"report-light": (), "report-dark": (DARK,)}.items():
            browse(page, f"--screenshot={IMAGES / name}.png", f"--window-size={SCREEN}", *options)


if __name__ == "__main__":
    main()
