"""A machine's rates for plans that are chosen by seconds: of a file, or measured now."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def rates_of(argument: str | None, directory: str = ".") -> dict[str, Any] | None:
    """`argument` is a file as `slideformer probe --json` prints it, or "probe": this machine, in a process of its own,
    so that what is measured there stays out of the cases; its disk is that of `directory`. None: those that an earlier
    probe left, if there are any."""
    if argument != "probe":
        return None if argument is None else json.loads(Path(argument).read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "slideformer", "probe", "--fresh", "--json", "--directory", directory]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return json.loads(done.stdout[done.stdout.index("{") :])
