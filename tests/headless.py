"""A page opened in headless Chromium, where there is one."""

import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
DARK = "--blink-settings=preferredColorScheme=0"


def browse(page: Path, *options: str) -> str:
    """Open a page; returns what Chromium wrote to standard output."""
    with tempfile.TemporaryDirectory() as profile:
        command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", *options, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
