"""Checkpoints that are written while training goes on, one at a time."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slideformer.engine.engine import Engine
from slideformer.engine.snapshot import Snapshot
from slideformer.errors import SlideFormerError
from slideformer.listeners.events import Listener
from slideformer.prepare.job import Job
from slideformer.run.saving import give_way, write_state


@dataclass
class _Save:
    """One checkpoint on its way; `recorded` is set once the run's records have its step."""

    step: int
    snapshot: Snapshot
    recorded: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.perf_counter)


class BackgroundSaving:
    """Writes what a step left, from a snapshot of it, in a thread of its own.

    A checkpoint is published only once the run's records have its step, as a run that continues from it goes on writing
    them behind that step. The listener is told, in the training thread, once the checkpoint is durable.
    """

    def __init__(self, engine: Engine, job: Job, listener: Listener):
        self._engine, self._job, self._listener = engine, job, listener
        self._running: tuple[_Save, Future[Path], ThreadPoolExecutor] | None = None

    def begin(self, step: int) -> None:
        """Start saving what `step`, the last one, left; first waits for the checkpoint before, if it is on its way.

        Raises:
            CheckpointError, DiskError: that one could not be written.
        """
        self._end()
        save = _Save(step, self._engine.begin_snapshot())
        thread = ThreadPoolExecutor(1, "saver", initializer=give_way)
        self._running = save, thread.submit(self._write, save), thread

    def recorded(self, step: int) -> None:
        """The run's records have `step`. Tells of a checkpoint that has become durable since the last call.

        Raises:
            CheckpointError, DiskError: it could not be written.
        """
        if self._running is None:
            return
        save, done, _ = self._running
        if step >= save.step:
            save.recorded.set()
        if done.done():
            self._end()

    def finish(self) -> None:
        """Wait for the checkpoint on its way; the run's records have its step.

        Raises:
            CheckpointError, DiskError: it could not be written.
        """
        if self._running is not None:
            self._running[0].recorded.set()
            self._end()

    @contextmanager
    def ended_if_training_fails(self) -> Iterator[None]:
        """A checkpoint of a step before the one that failed is still written, if its state is whole; no thread is
        left, and the error within stays the one that is told."""
        try:
            yield
        except BaseException:
            if self._running is not None:
                print(f"training failed; finishing the checkpoint of step {self._running[0].step}")
                self._running[0].snapshot.end_of_updates()
                try:
                    self.finish()
                except SlideFormerError as error:
                    print(f"that checkpoint was not saved: {error}")
            raise

    def _end(self) -> None:
        if self._running is None:
            return
        save, done, thread = self._running
        self._running = None
        try:
            path = done.result()
        finally:
            thread.shutdown(wait=True)
        print(f"saved {path} in {time.perf_counter() - save.started:.1f} s, while training went on")
        self._listener.saved(save.step, path)

    def _write(self, save: _Save) -> Path:
        def wait_until_recorded(_: Path) -> None:
            save.recorded.wait()

        try:
            return write_state(self._job, save.step, save.snapshot.unit_states(), wait_until_recorded)
        finally:
            self._engine.end_snapshot()
