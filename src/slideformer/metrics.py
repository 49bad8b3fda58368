"""What one optimizer step was, and the file that remembers every step."""

import json
import math
import os
import resource
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from slideformer.errors import DataError


@dataclass(frozen=True)
class StepStats:
    """One optimizer step, counted from 1.

    `loss` is the mean over the step's trained tokens; `grad_norm` is the norm before clipping; `tokens` leaves
    padding out; `seconds` is wall time from the end of the step before; peaks are bytes since the run began.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_second: float
    gpu_peak_bytes: int
    host_peak_bytes: int


class MetricsLog:
    """Appends one JSON line a step and flushes it, so that a killed run keeps what it did.

    Args:
        path: the file, created with its directories.
        resume_step: last step that is not run again; later records of an earlier run are removed.
    """

    def __init__(self, path: Path, resume_step: int = 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [stats for stats in read_metrics(path) if stats.step <= resume_step] if path.exists() else []
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(map(_as_line, kept)), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, stats: StepStats) -> None:
        self._file.write(_as_line(stats))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


def read_metrics(path: Path) -> list[StepStats]:
    """All records of a metrics file; a last line cut short by a kill is left out.

    Raises:
        DataError: a line is not a step record.
    """
    return list(_records(path))


def host_peak_bytes() -> int:
    """The most resident memory this process has had, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def _records(path: Path) -> Iterator[StepStats]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return
        try:
            record = json.loads(line)
            named = {field.name: record[field.name] for field in fields(StepStats)}
            restored: dict[str, Any] = {name: math.nan if value is None else value for name, value in named.items()}
            yield StepStats(**restored)
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number} is not a step record", hint=f"move {path} away") from None


def _as_line(stats: StepStats) -> str:
    """One line of standard JSON, which has no NaN: a value that is not finite becomes null."""
    record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(stats).items()}
    return json.dumps(record, allow_nan=False) + "\n"
