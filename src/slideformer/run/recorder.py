"""Step results -> records, told to whoever listens."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from slideformer.data.batches import Batch
from slideformer.engine.engine import Engine
from slideformer.engine.step_result import StepResult
from slideformer.lanes.measured import BusySpans, take_spans
from slideformer.listeners.events import Listener
from slideformer.listeners.metrics import StepStats, host_peak_bytes
from slideformer.optim.adamw import AdamWStep


class Recorder:
    """Turns step results into records one step late, so that reading a number never holds the engine up.

    Args:
        steps_per_epoch: how many steps pass over the data once.
    """

    def __init__(self, engine: Engine, listener: Listener, steps_per_epoch: int):
        self._engine, self._listener, self._steps_per_epoch = engine, listener, steps_per_epoch
        self._waiting: tuple[int, AdamWStep, Batch, StepResult, BusySpans, float] | None = None
        self._last = time.perf_counter()

    def add(self, step: int, hyper: AdamWStep, batch: Batch, result: StepResult) -> None:
        self._tell()
        self._waiting = (step, hyper, batch, result, take_spans(self._engine.lanes), self._lap())

    def finish(self) -> None:
        """Tell of the last step, after its last update."""
        self._engine.drain()
        if self._waiting:
            self._waiting = (*self._waiting[:5], self._waiting[5] + self._lap())
        self._tell()

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """The last step is over and told of; what happens within, such as saving, counts into no step's time."""
        self.finish()
        yield
        self.resume()

    def resume(self) -> None:
        """What happened since `finish` is not part of the next step's time."""
        take_spans(self._engine.lanes)
        self._lap()

    def _tell(self) -> None:
        if self._waiting is None:
            return
        step, hyper, batch, result, busy, seconds = self._waiting
        loss, norm = result.loss, result.grad_norm
        gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        self._waiting = None
        stats = StepStats(
            step, loss, norm, hyper.learning_rate, batch.tokens, batch.trained_tokens, seconds,
            batch.tokens / seconds, gpu, host_peak_bytes(), step / self._steps_per_epoch,
            busy.compute_seconds, busy.h2d_seconds, busy.d2h_seconds, result.optimizer_seconds, _few(result.non_finite),
        )  # fmt: skip
        self._listener.stepped(stats)

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def _few(units: list[str]) -> str:
    """The first names, and how many more."""
    more = [f"{len(units) - 2} more"] if len(units) > 2 else []
    return ", ".join([*units[:2], *more])
