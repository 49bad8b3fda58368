"""What a run left in its directory, read for the report.

A file that is not there reads as empty and a key that is not there as its default: runs in progress, old runs and runs
of a later version have reports, too. What is there has to be right.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from slideformer.errors import ConfigError, DataError
from slideformer.storage.lock import is_locked

METRICS_FILE, EVALS_FILE, SAMPLES_FILE, RECORD_FILE = "metrics.jsonl", "evals.jsonl", "samples.jsonl", "run.json"
LARGEST_VALUE = 1e300  # what is beyond it cannot be drawn, and is treated as not finite

Count = Annotated[int, Field(ge=0, lt=2**53)]  # what a double holds exactly: positions in charts are doubles


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Step(_Part):
    """One line of metrics.jsonl: the number of the step, and whatever else was measured in it, null for not finite."""

    model_config = ConfigDict(frozen=True, extra="allow")

    step: Count
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: float | None = None
    trained_tokens: float | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    gpu_peak_bytes: float | None = None
    host_peak_bytes: float | None = None

    def value(self, name: str) -> float:
        """A measurement by its name, also one that this version does not know; NaN where there is none."""
        found: Any = getattr(self, name, None)
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        return float(found) if is_number and abs(found) < LARGEST_VALUE else math.nan


class Evaluation(_Part):
    """One line of evals.jsonl; step 0 is before training."""

    step: Count
    loss: float | None = None
    perplexity: float | None = None
    tokens: Count | None = None
    seconds: float | None = None


class Sample(_Part):
    """One line of samples.jsonl; step 0 is before training."""

    step: Count
    prompt: str
    answer: str


class Machine(_Part):
    name: str = ""
    host_bytes: Count | None = None
    device_bytes: Count | None = None


class PlannedBytes(_Part):
    """The part of `Plan.as_json()` that the report shows.

    Attributes:
        sizes: what the plan chose, by name.
        host_bytes: by name of the part, with "total" and "budget".
        device_bytes: by phase and name of the part, with "peak" and "budget" beside the phases.
        disk_bytes: as `host_bytes`; empty of runs before there was a disk tier.
    """

    sizes: dict[str, Any] = {}
    host_bytes: dict[str, Count | None] = {}
    device_bytes: dict[str, dict[str, Count] | Count | None] = {}
    disk_bytes: dict[str, Count | None] = {}


class SourceReport(_Part):
    """What became of the records of one source."""

    records: Count = 0
    kept: Count = 0
    truncated: Count = 0
    dropped_long: Count = 0
    dropped_untrained: Count = 0
    tokens: Count = 0
    trained_tokens: Count = 0
    malformed: Count = 0


class Lengths(_Part):
    """A histogram of lengths in tokens: bar i counts lengths from edges[i] up to, and without, edges[i + 1]."""

    edges: list[FiniteFloat] = []
    counts: list[Count] = []

    @model_validator(mode="after")
    def _one_edge_more(self) -> Self:
        if self.edges and len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.edges)} edges do not bound {len(self.counts)} counts")
        if any(high <= low for low, high in pairwise(self.edges)):
            raise ValueError("edges do not ascend")
        return self


class DataFacts(_Part):
    sources: list[str] = []
    reports: list[SourceReport] = []
    lengths: Lengths = Lengths()


class ModelFacts(_Part):
    architecture: str = ""
    parameters: Count | None = None
    trained_parameters: Count | None = None


class RunRecord(_Part):
    """run.json: what was known when the run began."""

    started: str = ""
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}
    machine: Machine = Machine()
    plan: PlannedBytes = PlannedBytes()
    data: DataFacts = DataFacts()
    model: ModelFacts = ModelFacts()
    steps: Count | None = None


@dataclass(frozen=True)
class RunData:
    """A run directory, read.

    Attributes:
        record: None where the run left no run.json.
        is_running: whether a process is training in this directory now.
    """

    directory: Path
    steps: Sequence[Step]
    evaluations: Sequence[Evaluation]
    samples: Sequence[Sample]
    record: RunRecord | None
    is_running: bool

    def column(self, name: str) -> list[float]:
        """One measurement of every step; NaN where it is missing or not finite."""
        return [step.value(name) for step in self.steps]


def read_run(directory: Path) -> RunData:
    """Read everything in a run directory that a report shows.

    Raises:
        ConfigError: there is no run in the directory.
        DataError: a record is damaged; names the file and the line.
    """
    if not any((directory / name).is_file() for name in (METRICS_FILE, RECORD_FILE)):
        message = f"{directory} holds no run: neither {METRICS_FILE} nor {RECORD_FILE} is there"
        raise ConfigError(message, hint="give the output_dir of a run")
    steps = list(_lines(directory / METRICS_FILE, Step))
    _check_order(directory / METRICS_FILE, steps)
    return RunData(
        directory,
        steps,
        list(_lines(directory / EVALS_FILE, Evaluation)),
        list(_lines(directory / SAMPLES_FILE, Sample)),
        _record(directory / RECORD_FILE),
        is_locked(directory),
    )


_Line = TypeVar("_Line", bound=_Part)


def _lines(path: Path, kind: type[_Line]) -> Iterator[_Line]:
    """The records of a JSONL file; a last line cut short by a kill is left out."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            yield kind.model_validate_json(line)
        except ValidationError as error:
            raise _damaged(f"{path}:{number}", path, error) from None


def _check_order(path: Path, steps: Sequence[Step]) -> None:
    for line in range(1, len(steps)):
        before, after = steps[line - 1].step, steps[line].step
        if after <= before:
            message = f"{path}:{line + 1}: step {after} stands behind step {before}"
            raise DataError(message, hint=f"remove the lines of another run from {path.name}")


def _record(path: Path) -> RunRecord | None:
    if not path.is_file():
        return None
    try:
        return RunRecord.model_validate(json.loads(path.read_bytes()))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno} is not JSON: {error.msg}", hint=f"move {path} away") from None
    except ValidationError as error:
        raise _damaged(str(path), path, error) from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}", hint=f"move {path} away") from None


def _damaged(place: str, path: Path, error: ValidationError) -> DataError:
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"]))
    return DataError(f"{place}: {key + ': ' if key else ''}{first['msg']}", hint=f"repair it, or move {path} away")
