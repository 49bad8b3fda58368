"""The run as a person watches it: one live line in a terminal, plain lines in a file."""

from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from slideformer.events import Listener
from slideformer.metrics import EvalStats, RunRecord, Sample, StepStats
from slideformer.units import format_bytes, format_seconds

RECENT_STEPS = 20  # the time left follows the last steps: the first ones warm up
WIDE_COLUMNS = 100  # a narrower terminal has no room for the bar


class ProgressLine(Listener):
    """Shows each step.

    Args:
        logging_steps: steps between two plain lines; the live line shows every step.
        console: where to write; None: standard output.
    """

    def __init__(self, logging_steps: int = 1, console: Console | None = None):
        self._total_steps = 0
        self._logging_steps = logging_steps
        self._console = console or Console()
        self._recent_seconds: deque[float] = deque(maxlen=RECENT_STEPS)
        self._live = _live_line(self._console) if self._console.is_terminal else None

    def began(self, run: RunRecord, done_steps: int) -> None:
        self._total_steps = run.steps
        if self._live:
            self._task = self._live.add_task("", total=run.steps, completed=done_steps, summary="starting")
            self._live.start()

    def stepped(self, stats: StepStats) -> None:
        self._recent_seconds.append(stats.seconds)
        if self._live:
            self._live.update(self._task, completed=stats.step, summary=self._summary(stats))
        elif stats.step % self._logging_steps == 0 or stats.step == self._total_steps:
            self._console.print(f"step {stats.step}/{self._total_steps}  {self._summary(stats)}", soft_wrap=True)

    def evaluated(self, stats: EvalStats) -> None:
        found = f"held-out loss {stats.loss:.4f}  perplexity {stats.perplexity:.4g}"
        took = f"{stats.tokens:,} tokens in {format_seconds(stats.seconds)}"
        self._console.print(f"step {stats.step}/{self._total_steps}  {found}  {took}", soft_wrap=True, highlight=False)

    def sampled(self, samples: list[Sample]) -> None:
        for sample in samples:
            lines = f"prompt: {sample.prompt}\nanswer after step {sample.step}: {sample.answer}"
            self._console.print(lines, soft_wrap=True, markup=False, highlight=False)

    def _summary(self, stats: StepStats) -> str:
        seconds_a_step = sum(self._recent_seconds) / len(self._recent_seconds)
        parts = [  # a narrow terminal cuts the end
            f"loss {stats.loss:.4f}",
            f"norm {stats.grad_norm:.3g}",
            f"{stats.tokens_per_second:,.0f} tok/s",
            f"{format_seconds(seconds_a_step * (self._total_steps - stats.step))} left",
            f"GPU {format_bytes(stats.gpu_peak_bytes)}" if stats.gpu_peak_bytes else "",
            f"host {format_bytes(stats.host_peak_bytes)}",
        ]
        return "  ".join(filter(None, parts))

    def ended(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()


def _live_line(console: Console) -> Progress:
    text = TextColumn("{task.completed}/{task.total}  {task.fields[summary]}", markup=False)
    columns = (BarColumn(bar_width=16), text) if console.width >= WIDE_COLUMNS else (text,)
    return Progress(*columns, console=console)
