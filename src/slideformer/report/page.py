"""The page: everything put together, and written as one file."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from slideformer.errors import ConfigError
from slideformer.report.answers import answers
from slideformer.report.axes import format_number
from slideformer.report.curve import Curve, Kind, Steps, draw
from slideformer.report.datasets import histogram, source_rows
from slideformer.report.memory import tiers
from slideformer.report.run_data import LARGEST_VALUE, RunData, read_run
from slideformer.report.settings import as_yaml, changed
from slideformer.report.summary import figures, heading
from slideformer.report.timing import timing
from slideformer.units import format_bytes

KINDS = (
    Kind("loss", "Loss", may_be_log=True),
    Kind("learning_rate", "Learning rate", from_zero=True, is_smoothed=False),
    Kind("grad_norm", "Gradient norm", may_be_log=True),
    Kind("tokens_per_second", "Throughput", "tokens/s", from_zero=True),
)


def write_report(directory: Path, out: Path | None = None) -> Path:
    """Write the report of a run as one HTML file that needs no other file and no network.

    Args:
        directory: the `output_dir` of a run, finished or not.
        out: the file; None: report.html in `directory`.

    Returns:
        the file.

    Raises:
        ConfigError: there is no run in the directory, or the file cannot be written.
        DataError: a record of the run is damaged.
    """
    page = render(read_run(directory))
    path = out or directory / "report.html"
    try:
        path.write_text(page, encoding="utf-8", errors="replace")  # half a surrogate pair has no UTF-8
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", hint="name another file with --out") from None
    return path


def render(run: RunData) -> str:
    """The page as text; everything that came from the run is escaped."""
    curves = _curves(run)
    memory = tiers(run)
    record = run.record
    return _environment().get_template("page.html").render(
        heading=heading(run),
        figures=figures(run, memory),
        curves=curves,
        points=_points(run, curves),
        evaluations=run.evaluations,
        tiers=memory,
        sizes=_in_words(record.plan.sizes) if record else {},
        timing=timing(run),
        sources=source_rows(record.data) if record else [],
        lengths=histogram(record.data.lengths) if record else None,
        answers=answers(run),
        settings=as_yaml(changed(record.config)) if record and record.config else "",
        all_settings=as_yaml(record.config) if record and record.config else "",
        record=record,
    )  # fmt: skip


def _curves(run: RunData) -> list[Curve]:
    if not run.steps:
        return []
    steps = _steps(run)
    curves = (draw(kind, steps, run.column(kind.key), _marks(run) if kind.key == "loss" else []) for kind in KINDS)
    return [curve for curve in curves if curve]


def _steps(run: RunData) -> Steps:
    return Steps.of([step.step for step in run.steps], [step for step, _ in _marks(run)])


def _marks(run: RunData) -> list[tuple[int, float]]:
    """Evaluations that can be drawn."""
    losses = ((evaluation.step, evaluation.loss) for evaluation in run.evaluations)
    return [(step, loss) for step, loss in losses if loss is not None and abs(loss) < LARGEST_VALUE]


def _points(run: RunData, curves: list[Curve]) -> dict[str, Any]:
    """What the page's script reads to answer a pointer."""
    if not curves:
        return {}
    steps = _steps(run)
    return {
        "x": [round(x, 1) for x in steps.x],
        "spans": steps.spans,
        "curves": {curve.kind.key: curve.points for curve in curves},
        "evaluations": _marks(run),
    }


def _in_words(sizes: Mapping[str, Any]) -> dict[str, str]:
    """{"micro_batch_size": 1024} -> {"micro batch size": "1,024"}."""
    return {
        name.replace("_", " "): f"{size:,}" if isinstance(size, int) and not isinstance(size, bool) else str(size)
        for name, size in sizes.items()
    }


def _environment() -> Environment:
    folder = resources.files("slideformer.report")
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "number": format_number}
    return environment
