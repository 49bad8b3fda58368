"""The files in which a run remembers itself: one JSON file of what it is, and a line for everything that happened."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from slideformer.errors import DataError
from slideformer.listeners.events import Listener
from slideformer.listeners.metrics import EvalStats, RunRecord, Sample, StepStats

RUN, METRICS, EVALS, SAMPLES = "run.json", "metrics.jsonl", "evals.jsonl", "samples.jsonl"


class HasStep(Protocol):
    """A dataclass that belongs to a step."""

    @property
    def step(self) -> int: ...


Entry = TypeVar("Entry", bound=HasStep)


class RecordLog(Generic[Entry]):
    """Appends one JSON line an entry and flushes it, so that a killed run keeps what it did.

    Args:
        path: the file, created with its directories.
        kind: the dataclass of its entries.
        last_step: later entries of an earlier run are removed; -1 removes all.
    """

    def __init__(self, path: Path, kind: type[Entry], last_step: int = -1):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [entry for entry in read_log(path, kind) if entry.step <= last_step] if path.exists() else []
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(map(_as_line, kept)), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: Entry) -> None:
        self._file.write(_as_line(entry))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path, kind: type[Entry]) -> list[Entry]:
    """All entries of a file; a last line cut short by a kill is left out.

    Raises:
        DataError: a line is not an entry of this kind.
    """
    return list(_entries(path, kind))


def read_metrics(path: Path) -> list[StepStats]:
    """The steps of a `metrics.jsonl`."""
    return read_log(path, StepStats)


class RunDirectory(Listener):
    """Writes what a run tells into its `output_dir`.

    Args:
        last_step: the step that the run continues from; what an earlier run wrote of later ones is removed.
            None begins anew.
    """

    def __init__(self, path: Path, last_step: int | None):
        last = -1 if last_step is None else last_step
        self._path = path
        self._steps = RecordLog(path / METRICS, StepStats, last)
        self._evals = RecordLog(path / EVALS, EvalStats, last)
        self._samples = RecordLog(path / SAMPLES, Sample, last)

    def began(self, run: RunRecord, done_steps: int) -> None:
        partial = self._path / f"{RUN}.partial"
        partial.write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._path / RUN)

    def stepped(self, stats: StepStats) -> None:
        self._steps.write(stats)

    def evaluated(self, stats: EvalStats) -> None:
        self._evals.write(stats)

    def sampled(self, samples: list[Sample]) -> None:
        for sample in samples:
            self._samples.write(sample)

    def ended(self) -> None:
        for log in (self._steps, self._evals, self._samples):
            log.close()


def _entries(path: Path, kind: type[Entry]) -> Iterator[Entry]:
    known = fields(kind)  # type: ignore[arg-type]  # a dataclass, which a protocol cannot say
    optional = {field.name for field in known if field.default is not MISSING}  # an older run did not write them
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return
        try:
            record = json.loads(line)
            names = [field.name for field in known if field.name in record or field.name not in optional]
            named: dict[str, Any] = {name: math.nan if record[name] is None else record[name] for name in names}
            yield kind(**named)
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number} is not a {kind.__name__} record", hint=f"move {path} away") from None


def _as_line(entry: Any) -> str:
    """One line of standard JSON, which has no NaN: a value that is not finite becomes null."""
    record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(entry).items()}
    return json.dumps(record, allow_nan=False) + "\n"
