"""The head of the report: which run this is, how far it came, and its figures in a glance."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Literal

from slideformer.report.axes import format_number
from slideformer.report.memory import Tier
from slideformer.report.run_data import RunData, RunRecord
from slideformer.report.series import finite, smoothed, smoothing_span
from slideformer.units import format_bytes, format_seconds

State = Literal["finished", "running", "stopped", "unknown"]


@dataclass(frozen=True)
class Heading:
    """Which run this is, and how far it came.

    Attributes:
        about: facts in a few words each.
        state, status: the same as a word and as a sentence.
        percent: of the steps that are done; None where their number is not known.
    """

    title: str
    about: list[str]
    state: State
    status: str
    percent: float | None


@dataclass(frozen=True)
class Figure:
    """A number that is worth a large type."""

    label: str
    value: str
    note: str = ""


def heading(run: RunData) -> Heading:
    name = run.directory.resolve().name
    model = Path(str(run.record.config.get("model") or "")).name if run.record else ""
    about = [*_about(run.record), f"in {name}"] if run.record and model else []
    return Heading(model or name, about, *_progress(run))


def figures(run: RunData, tiers: list[Tier]) -> list[Figure]:
    """As many as the records allow."""
    found = [_loss(run), _held_out(run), _throughput(run), _tokens(run), _time(run)]
    for tier in tiers:
        if tier.measured_bytes:
            budget = f"of {format_bytes(tier.budget_bytes)}" if tier.budget_bytes else ""
            found.append(Figure(f"{tier.name} memory", format_bytes(tier.measured_bytes), budget))
    return [figure for figure in found if figure]


def _about(record: RunRecord) -> list[str]:
    model, words = record.model, []
    if model.architecture:
        words.append(model.architecture)
    if model.parameters:
        all_trained = model.trained_parameters in (None, model.parameters)
        trained = "all trained" if all_trained else f"{_short(model.trained_parameters or 0)} of them trained"
        words.append(f"{_short(model.parameters)} parameters, {trained}")
    if record.started:
        words.append(f"started {_readable(record.started)}")
    return words


def _readable(moment: str) -> str:
    try:
        return datetime.fromisoformat(moment).strftime("%d %B %Y, %H:%M %Z").strip().removeprefix("0")
    except ValueError:
        return moment


def _progress(run: RunData) -> tuple[State, str, float | None]:
    """State, sentence, and percent of the steps that are done."""
    done = run.steps[-1].step if run.steps else 0
    total = run.record.steps if run.record else None
    of_total = f"{done:,} of {total:,} steps" if total else f"{done:,} steps"
    percent = min(100.0, 100 * done / total) if total else None
    if run.is_running:
        return "running", f"running, {of_total} done", percent
    if not total:
        return "unknown", of_total, None
    if done >= total:
        return "finished", f"finished, {total:,} steps", percent
    return "stopped", f"stopped after {of_total}", percent


def _loss(run: RunData) -> Figure | None:
    losses = finite(run.column("loss"))
    if not losses:
        return None
    span = smoothing_span(len(losses))
    last = smoothed(losses, span)[-1] if span else losses[-1]
    return Figure("Training loss", format_number(last), f"{'smoothed; ' * bool(span)}from {format_number(losses[0])}")


def _held_out(run: RunData) -> Figure | None:
    measured = [evaluation.loss for evaluation in run.evaluations if evaluation.loss is not None]
    if not measured:
        return None
    note = f"from {format_number(measured[0])}" if len(measured) > 1 else ""
    return Figure("Held-out loss", format_number(measured[-1]), note)


def _throughput(run: RunData) -> Figure | None:
    rates = finite(run.column("tokens_per_second"))
    return Figure("Throughput", f"{median(rates):,.0f}", "tokens a second, median") if rates else None


def _tokens(run: RunData) -> Figure | None:
    total, trained = sum(finite(run.column("tokens"))), sum(finite(run.column("trained_tokens")))
    return Figure("Tokens", _short(total), f"{100 * trained / total:.0f}% of them trained") if total else None


def _time(run: RunData) -> Figure | None:
    seconds = finite(run.column("seconds"))
    if not seconds:
        return None
    return Figure("Time", format_seconds(sum(seconds)), f"{format_number(median(seconds))} s a step, median")


def _short(count: float) -> str:
    """1234567 -> '1.23M'."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count:.0f}"
