"""The live panel: a run in seven lines of a terminal."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rich.box import ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slideformer.listeners.events import Listener
from slideformer.listeners.metrics import EvalStats, RunRecord, StepStats
from slideformer.listeners.sparkline import Curve
from slideformer.units import format_bytes, format_seconds

RECENT_STEPS = 20  # speed and time left follow the last steps: the first ones warm up
REFRESHES_A_SECOND = 1  # drawing takes milliseconds of the interpreter that also feeds the GPU
MOST_COLUMNS = 120
# Colours of the sixteen that a terminal's theme adapts to its background; text keeps the terminal's own.
BAR, REST, VALUE = "cyan", "bright_black", "bold"
LANES = ("compute", "h2d", "d2h", "optimizer")


class LivePanel(Listener):
    """Keeps a panel at the bottom of a terminal; what is printed meanwhile appears above it."""

    def __init__(self, console: Console):
        self._console = console
        self._live: Live | None = None

    def began(self, run: RunRecord, done_steps: int) -> None:
        self._view = RunView(run, done_steps)
        self._live = Live(
            self._view, console=self._console, refresh_per_second=REFRESHES_A_SECOND, vertical_overflow="crop"
        )  # fmt: skip
        self._live.start()

    def stepped(self, stats: StepStats) -> None:
        self._view.add(stats)

    def evaluated(self, stats: EvalStats) -> None:
        self._view.evaluation = stats

    def ended(self) -> None:
        """Leave the last picture, and the terminal as it was."""
        if self._live:
            self._live.stop()


@dataclass
class RunView:
    """What the panel shows of a run, and how."""

    run: RunRecord
    done_steps: int
    started: float = field(default_factory=time.perf_counter)
    evaluation: EvalStats | None = None
    recent: deque[StepStats] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    losses: Curve = field(default_factory=Curve)

    def add(self, stats: StepStats) -> None:
        self.losses.add(stats.loss)
        self.recent.append(stats)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, MOST_COLUMNS)
        rows = Table.grid(padding=(0, 2), expand=True)
        rows.add_column(no_wrap=True)
        rows.add_column(ratio=1, no_wrap=True)
        rows.add_column(justify="right", no_wrap=True)
        recent = list(self.recent)  # the training thread may add to it
        for row in self._rows(recent, width) if recent else [("step", _values(self._first()), "")]:
            rows.add_row(*row)
        model, elapsed = self.run.model, format_seconds(time.perf_counter() - self.started)
        title = f"{model['architecture']} · {model['parameters'] / 1e9:.3g}B parameters · {elapsed}"
        yield Panel(
            Group(rows, _busy(recent, width)),
            title=title,
            title_align="left",
            box=ROUNDED,
            border_style=REST,
            width=width,
        )

    def _rows(self, recent: list[StepStats], width: int) -> list[tuple[Any, Any, Any]]:
        last = recent[-1]
        seconds_a_step = sum(step.seconds for step in recent) / len(recent)
        left = format_seconds(seconds_a_step * (self.run.steps - last.step))
        speed = sum(step.tokens for step in recent) / sum(step.seconds for step in recent)
        rows = [
            ("step", _bar(last.step, self.run.steps), _values(f"{last.step:,} of {self.run.steps:,}", f"{left} left")),
            ("loss", Text(self.losses.draw(width - 40), style=BAR), _values(f"{last.loss:.4f}", self._held_out())),
            (
                "",
                _values(f"epoch {last.epoch:.2f}", f"norm {last.grad_norm:.3g}", f"lr {last.learning_rate:.2e}"),
                _values(f"{speed:,.0f} tokens/s", f"{seconds_a_step:.3g} s"),
            ),
        ]
        return [*rows, *self._memory(last)]

    def _first(self) -> str:
        return f"{self.done_steps + 1:,} of {self.run.steps:,} is running"

    def _held_out(self) -> str:
        return f"held out {self.evaluation.loss:.4f}" if self.evaluation else ""

    def _memory(self, last: StepStats) -> list[tuple[Any, Any, Any]]:
        tiers = [("GPU", last.gpu_peak_bytes, "device_bytes"), ("host", last.host_peak_bytes, "host_bytes")]
        return [
            (name, _bar(peak, budget), _values(f"{format_bytes(peak)} of {format_bytes(budget)}"))
            for name, peak, key in tiers
            if (budget := self.run.plan[key]["budget"])
        ]


def _bar(part: float, whole: float) -> ProgressBar:
    colour = BAR if part <= whole else "red"
    return ProgressBar(total=whole, completed=part, style=REST, complete_style=colour, finished_style=colour)


def _values(*parts: str) -> Text:
    return Text("  ").join(Text(part, style=VALUE) for part in parts if part)


def _busy(recent: list[StepStats], width: int) -> Text:
    """How much of the recent steps' time each worker was at work; they overlap."""
    cells = 10 if width >= 110 else 4
    line = Text("busy  ", no_wrap=True)
    for lane in LANES if recent else ():
        busy_seconds = sum(getattr(step, f"{lane}_seconds") for step in recent)
        share = min(1.0, busy_seconds / sum(step.seconds for step in recent))
        full = round(share * cells)
        line.append(f"{lane} ").append("━" * full, style=BAR).append("─" * (cells - full))
        line.append(f" {share:>4.0%}  ", style=VALUE)
    return line
