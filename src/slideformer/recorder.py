"""Step results -> records, told to whoever listens."""

import time

import torch

from slideformer.data.batches import Batch
from slideformer.engine.engine import Engine, StepResult
from slideformer.events import Listener
from slideformer.metrics import StepStats, host_peak_bytes
from slideformer.optim.adamw import AdamWStep


class Recorder:
    """Turns step results into records one step late, so that reading a number never holds the engine up."""

    def __init__(self, engine: Engine, listener: Listener):
        self._engine, self._listener = engine, listener
        self._waiting: tuple[int, AdamWStep, Batch, StepResult, float] | None = None
        self._last = time.perf_counter()

    def add(self, step: int, hyper: AdamWStep, batch: Batch, result: StepResult) -> None:
        self._tell()
        self._waiting = (step, hyper, batch, result, self._lap())

    def finish(self) -> None:
        """Tell of the last step, after its last update."""
        self._engine.drain()
        if self._waiting:
            self._waiting = (*self._waiting[:4], self._waiting[4] + self._lap())
        self._tell()

    def resume(self) -> None:
        """What happened since `finish`, such as saving, is not part of the next step's time."""
        self._lap()

    def _tell(self) -> None:
        if self._waiting is None:
            return
        step, hyper, batch, result, seconds = self._waiting
        loss, norm = result.loss, result.grad_norm
        gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        self._waiting = None
        stats = StepStats(
            step, loss, norm, hyper.learning_rate, batch.tokens, batch.trained_tokens, seconds,
            batch.tokens / seconds, gpu, host_peak_bytes(),
        )  # fmt: skip
        self._listener.stepped(stats)

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
