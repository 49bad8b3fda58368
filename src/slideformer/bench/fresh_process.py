"""Runs a measurement in a process of its own, so that its peaks are its own, and watches the machine's memory.

What a driver pins is not always counted as the process's own memory, so that the drop of free memory says more there.
"""

import json
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Any

from slideformer.plan.machine import free_host_bytes

SAMPLE_SECONDS = 0.1
TAIL_LINES = 4  # of what the process wrote before it failed


def run_fresh(command: Sequence[str], timeout_seconds: float) -> dict[str, Any]:
    """What the command measured; a failure is a result, too.

    Args:
        timeout_seconds: after which the process is killed.

    Returns:
        The last JSON object that the process printed on a line of its own; or "error": the last lines of its error
        output, or that it took too long. In both cases also "host_taken_bytes": how much less host memory was free at
        most than when it began.
    """
    with tempfile.TemporaryFile("w+") as errors, MemoryWatch() as memory:
        result = _run(command, timeout_seconds, errors)
    return {**result, "host_taken_bytes": memory.taken_bytes}


def _run(command: Sequence[str], timeout_seconds: float, errors: IO[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout_seconds:.0f} s"}
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]  # libraries print, too
    if done.returncode == 0 and printed:
        return json.loads(printed[-1])
    errors.seek(0)
    tail = [line.strip() for line in errors.read().splitlines() if line.strip()][-TAIL_LINES:]
    return {"error": f"exit {done.returncode}: " + " | ".join(tail)}


class MemoryWatch:
    """Samples the machine's free memory in a thread, while in a `with` block.

    Attributes:
        taken_bytes: the largest drop so far; other programs on the machine are part of it.
    """

    def __init__(self) -> None:
        self.taken_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(free_host_bytes(),), daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self, at_first: int) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.taken_bytes = max(self.taken_bytes, at_first - free_host_bytes())
