"""Step results -> records of the metrics file and the progress line."""

import time

import torch

from slideformer.data.batches import Batch
from slideformer.engine.engine import Engine, StepResult
from slideformer.metrics import MetricsLog, StepStats, host_peak_bytes
from slideformer.optim.adamw import AdamWStep
from slideformer.progress import ProgressLine


class Recorder:
    """Turns step results into records one step late, so that reading a number never holds the engine up."""

    def __init__(self, engine: Engine, log: MetricsLog, progress: ProgressLine):
        self._engine, self._log, self._progress = engine, log, progress
        self._waiting: tuple[int, AdamWStep, Batch, StepResult, float] | None = None
        self._last = time.perf_counter()

    def add(self, step: int, hyper: AdamWStep, batch: Batch, result: StepResult) -> None:
        self._write()
        self._waiting = (step, hyper, batch, result, self._lap())

    def finish(self) -> None:
        """Read what is left, after the engine's last update."""
        self._engine.drain()
        if self._waiting:
            self._waiting = (*self._waiting[:4], self._waiting[4] + self._lap())
        self._write()

    def _write(self) -> None:
        if self._waiting is None:
            return
        step, hyper, batch, result, seconds = self._waiting
        loss, norm = result.loss, result.grad_norm
        gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        stats = StepStats(
            step, loss, norm, hyper.learning_rate, batch.tokens, batch.trained_tokens, seconds,
            batch.tokens / seconds, gpu, host_peak_bytes(),
        )  # fmt: skip
        self._waiting = None
        self._log.write(stats)
        self._progress.update(stats)

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
