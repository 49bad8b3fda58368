"""What was measured beside what the plan said of it: the rows of `plan_accuracy.py`, from its results and others'."""

import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from slideformer.bench.case import Case
from slideformer.units import GIB, parse_bytes

MEMORY_BAR, SECONDS_BAR = 0.03, 0.15  # of the plan, on both sides of it
ENOUGH = 20  # configurations
SOME_DISK = "disk"  # as `offload_dir` of a row: which directory it was does not matter
HOW_MEASURED = ("steps", "warm_up", "device", "rates", "matmul_flops", "offload_dir")
SIZED = ("model", "sequences", "length", "gpu_budget_bytes", "host_budget_bytes", "offload_dir")
OUT_OF_MEMORY = ("outofmemory", "out of memory", "exit -9:")  # the last: killed, as a host without memory does

Result = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Bytes or seconds."""

    measured: float
    planned: float

    @property
    def deviation(self) -> float:
        """As a share of the plan: 0.03 is 3% more than it said."""
        return self.measured / self.planned - 1


@dataclass(frozen=True)
class Row:
    """One configuration and what came of it.

    Attributes:
        case: what was asked for, without how it was measured: equal for the same configuration.
        source: the file it was read from, or "".
        gpu, host: peak bytes, allocated on the GPU and resident on the host; None: not measured or not planned.
        seconds: of a step; None: not predicted, or not measured.
        bound: the lane that the plan said would bound the step; None: not recorded.
        on_disk: blocks and boundary activations that were on disk.
        error: why there is nothing, or None.
    """

    case: Case
    source: str = ""
    gpu: Pair | None = None
    host: Pair | None = None
    seconds: Pair | None = None
    bound: str | None = None
    on_disk: int = 0
    error: str | None = None

    @property
    def out_of_memory(self) -> bool:
        return self.error is not None and any(words in self.error.lower() for words in OUT_OF_MEMORY)

    def judged(self) -> list[tuple[str, Pair | None, float]]:
        """(what, measured and planned, how far from the plan it may be)."""
        return [("GPU", self.gpu, MEMORY_BAR), ("host", self.host, MEMORY_BAR), ("seconds", self.seconds, SECONDS_BAR)]

    def misses(self) -> list[str]:
        """What is further from the plan than it may be, or has nothing to be judged by; of an error, nothing."""
        if self.error is not None:
            return []
        return [
            f"{what} {pair.deviation:+.1%}" if pair else f"{what}: no plan or no measurement"
            for what, pair, bar in self.judged()
            if pair is None or abs(pair.deviation) > bar
        ]

    @property
    def holds(self) -> bool:
        return self.error is None and not self.misses()


def row_of(result: Result, disk: bool, source: str = "") -> Row:
    """Of a result with the fields of its case and what `slideformer.bench.sliding.measure` returned, or "error"."""
    sizes, timing = result.get("plan") or {}, result.get("planned") or {}
    return Row(
        asked(result, disk), source,
        _pair(result.get("gpu_allocated_bytes"), result.get("gpu_planned_bytes")),
        _pair(result.get("host_peak_bytes"), result.get("host_planned_bytes")),
        _pair(result.get("step_seconds"), timing.get("seconds")),
        timing.get("bound"), sizes.get("disk_blocks", 0) + sizes.get("disk_boundaries", 0), result.get("error"),
    )  # fmt: skip


def asked(named: dict[str, Any], disk: bool) -> Case:
    """The case of these fields, and others, without how it was measured."""
    known = {f.name: named[f.name] for f in fields(Case) if f.name in named and f.name not in HOW_MEASURED}
    return Case(**known, offload_dir=SOME_DISK if disk else None)


def name_of(case: Case) -> str:
    """Of a row's case: "qwen3-4b/8x1024/24GiB/host30GiB/disk"; other choices, if there are any, by their names."""
    parts = [case.model, f"{case.sequences}x{case.length}", _size(case.gpu_budget_bytes)]
    parts += [f"host{_size(case.host_budget_bytes)}"] if case.host_budget_bytes else []
    parts += [SOME_DISK] if case.offload_dir else []
    others = [f for f in fields(Case) if f.name not in (*SIZED, *HOW_MEASURED) and f.default is not MISSING]
    parts += [f"{f.name}={getattr(case, f.name)}" for f in others if getattr(case, f.name) != f.default]
    return "/".join(parts)


def latest(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """(the last row of each configuration, those that it replaces)."""
    found: dict[Case, Row] = {}
    replaced = []
    for row in rows:
        if row.case in found:
            replaced.append(found[row.case])
        found[row.case] = row
    return list(found.values()), replaced


def read_rows(file: Path) -> list[Row]:
    """The rows of a file that `plan_accuracy.py`, `compare.py` or `gpu_alone.py` wrote.

    Of `compare.py` these are the sliding engine's with a plan, or out of memory: its other errors are timeouts, and
    the largest batches that it looks for are single steps without a warm-up.

    Raises:
        ValueError: it is another's file, or none.
    """
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        return READERS[Path(whole["command"][0]).name](whole, file.stem)
    except (OSError, ValueError, KeyError, TypeError) as error:
        scripts = ", ".join(READERS)
        raise ValueError(f"{file}: not a result of {scripts} ({type(error).__name__}: {error})") from None


def _of_own(whole: Result, source: str) -> list[Row]:
    return [row_of(result, result["disk"], source) for result in whole["results"]]


def _of_compare(whole: Result, source: str) -> list[Row]:
    disk = "--offload-dir" in whole["command"]
    results = [] if "--largest-batch" in whole["command"] else whole["results"]
    rows = [row_of(result, disk, source) for result in results if result["system"] == "sliding"]
    return [row for row in rows if row.host or row.out_of_memory]


def _of_gpu_alone(whole: Result, source: str) -> list[Row]:
    options = dict(word.removeprefix("--").split(" ", 1) for word in whole["command"][1:])
    result = whole["result"]
    peaks = {f"{name}_bytes": result[f"{name}_gib"] * GIB for name in PEAKS}
    fields_of_case = {
        "model": options["shape"], "sequences": int(options["sequences"]), "length": int(options["length"]),
        "gpu_budget_bytes": _bytes_in(options.get("gpu_budget")), "clipping": "clip" in options,
        "host_budget_bytes": _bytes_in(options.get("host_budget")),
    }  # fmt: skip
    seconds = {"step_seconds": result["step_seconds"], "planned": {"seconds": result["predicted_seconds"]}}
    return [row_of({**fields_of_case, **peaks, **seconds, "plan": result["sizes"]}, False, source)]


PEAKS = ("gpu_allocated", "gpu_planned", "host_peak", "host_planned")
READERS: dict[str, Callable[[Result, str], list[Row]]] = {
    "plan_accuracy.py": _of_own,
    "compare.py": _of_compare,
    "gpu_alone.py": _of_gpu_alone,
}


def _pair(measured: float | None, planned: float | None) -> Pair | None:
    return Pair(measured, planned) if measured is not None and planned else None


def _bytes_in(budget: str | None) -> int | None:
    return parse_bytes(budget) if budget else None


def _size(size_bytes: int | None) -> str:
    return f"{size_bytes / GIB:.4g}GiB" if size_bytes else "none"
