"""The run as a person watches it: a live panel in a terminal, plain lines in a file."""

from collections import deque

from rich.console import Console

from slideformer.listeners.events import Listener
from slideformer.listeners.metrics import EvalStats, RunRecord, Sample, StepStats
from slideformer.listeners.panel import LivePanel
from slideformer.units import format_bytes, format_seconds

RECENT_STEPS = 20  # the time left follows the last steps: the first ones warm up


def progress(logging_steps: int = 1, console: Console | None = None) -> Listener:
    """What shows a run on `console` (by default standard output).

    Args:
        logging_steps: steps between two plain lines; the panel shows every step.
    """
    console = console or Console()
    return LivePanel(console) if console.is_terminal else PlainLines(console, logging_steps)


class PlainLines(Listener):
    """One line every few steps."""

    def __init__(self, console: Console, logging_steps: int = 1):
        self._console, self._logging_steps = console, logging_steps
        self._total_steps = 0
        self._recent_seconds: deque[float] = deque(maxlen=RECENT_STEPS)

    def began(self, run: RunRecord, done_steps: int) -> None:
        self._total_steps = run.steps

    def stepped(self, stats: StepStats) -> None:
        self._recent_seconds.append(stats.seconds)
        if stats.step % self._logging_steps == 0 or stats.step == self._total_steps:
            self._console.print(f"step {stats.step}/{self._total_steps}  {self._summary(stats)}", soft_wrap=True)

    def evaluated(self, stats: EvalStats) -> None:
        found = f"held-out loss {stats.loss:.4f}  perplexity {stats.perplexity:.4g}"
        took = f"{stats.tokens:,} tokens in {format_seconds(stats.seconds)}"
        self._console.print(f"step {stats.step}/{self._total_steps}  {found}  {took}", soft_wrap=True, highlight=False)

    def sampled(self, samples: list[Sample]) -> None:
        for sample in samples:
            when = f"after step {sample.step}" if sample.step else "before training"
            lines = f"prompt: {sample.prompt}\nanswer {when}: {sample.answer}"
            self._console.print(lines, soft_wrap=True, markup=False, highlight=False)

    def _summary(self, stats: StepStats) -> str:
        seconds_a_step = sum(self._recent_seconds) / len(self._recent_seconds)
        parts = [
            f"loss {stats.loss:.4f}",
            f"norm {stats.grad_norm:.3g}",
            f"{stats.tokens_per_second:,.0f} tok/s",
            f"{format_seconds(seconds_a_step * (self._total_steps - stats.step))} left",
            f"GPU {format_bytes(stats.gpu_peak_bytes)}" if stats.gpu_peak_bytes else "",
            f"host {format_bytes(stats.host_peak_bytes)}",
        ]
        return "  ".join(filter(None, parts))
