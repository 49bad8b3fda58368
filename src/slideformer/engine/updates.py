"""Gradient -> AdamW -> fresh: the optimizer behind the step, in its own thread, exactly clipped.

Without clipping a layer is updated as soon as its gradient has landed, while the layers below still compute backward.
With clipping all gradients wait until the norm is known, and the updates run just ahead of the next forward. A step
whose gradient is not finite can then be left out as a whole, as nothing of it has been applied. In both modes the layer
that the next forward needs first is updated first.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

from slideformer.errors import NonFinite, SlideFormerError, WorkerFailed
from slideformer.memory.gradients import HostGradient
from slideformer.optim.adamw import AdamWStep
from slideformer.streams import Lanes

CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_


@dataclass(eq=False)
class StepUpdates:
    """What one step asks of the optimizer.

    Attributes:
        hyper: learning rate and the rest of AdamW's settings.
        max_norm: clip to this norm before any update; None updates without waiting.
        skip_non_finite: leave the whole step out if its gradient is not finite; needs `max_norm`.
        squares: sums of squares of each update's gradients, by the update's number.
        norm: the gradient's norm before clipping, once known.
        non_finite: units whose gradient is NaN or infinite, once the norm is known; if there are any, and the step goes
            on, it is being left out.
    """

    hyper: AdamWStep
    max_norm: float | None
    skip_non_finite: bool = False
    squares: dict[int, list[float]] = field(default_factory=dict)
    closed: bool = False
    submitted: int = 0
    finished: int = 0
    norm: float | None = None
    busy_seconds: float = 0.0
    non_finite: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether every gradient has been submitted and applied."""
        return self.closed and self.finished == self.submitted

    def settle_norm(self) -> None:
        """Know the norm; fsum, because the order of arrival must not decide a bit."""
        self.norm = math.nan if self.non_finite else math.sqrt(math.fsum(chain.from_iterable(self.squares.values())))


@dataclass(eq=False)
class Update:
    """One pending update of a unit.

    Attributes:
        number: which of its step's updates, in order of submission.
        next_use: position in the next forward; smaller is served first.
        gradients: what must have landed before it runs.
        apply: changes the unit's state; None: that is done elsewhere, and the gradient only counts for the norm.
    """

    number: int
    unit: str
    next_use: int
    gradients: list[HostGradient]
    apply: Callable[[AdamWStep], None] | None
    step: StepUpdates

    def landed(self) -> bool:
        return all(gradient.landed.done() for gradient in self.gradients)


class Records(Protocol):
    """Where the states of units are, if not in memory.

    Attributes:
        holds_any: whether there is one to be expected.
    """

    holds_any: bool

    def expect(self, units: Sequence[str]) -> None:
        """They are updated next, in about this order."""
        ...

    def ready(self, unit: str) -> bool:
        """Whether its update would not wait for its state."""
        ...


class Watcher(Protocol):
    """Keeps units as one step left them."""

    def before_update(self, unit: str) -> None:
        """An update of a later step is about to change `unit`."""
        ...

    def after_update(self) -> None:
        """An update has run."""
        ...


class Updates:
    """The queue of pending updates and the worker that serves it.

    Args:
        records: told which states will be needed.
        skip: makes a unit go on as if a step had not been.
    """

    def __init__(self, lanes: Lanes, records: Records, skip: Callable[[str], None]):
        self._records, self._skip = records, skip
        self._lock = threading.Lock()
        self._pending: list[Update] = []
        self._unfinished: Counter[str] = Counter()
        self._watcher: Watcher | None = None
        self._kept_steps: set[StepUpdates] = set()
        self.worker = lanes.start_worker("optimizer", self._work)

    def submit(
        self,
        step: StepUpdates,
        unit: str,
        next_use: int,
        gradients: list[HostGradient],
        apply: Callable[[AdamWStep], None] | None,
    ) -> None:
        """Queue an update of `unit`; until it has run, `fresh(unit)` is false.

        With `apply` None the update itself was submitted to the device already, and the unit is fresh.
        """
        with self._lock:
            self._pending.append(Update(step.submitted, unit, next_use, gradients, apply, step))
            self._unfinished[unit] += apply is not None
            step.submitted += 1
        self._tell_records()
        self.worker.kick()

    def close(self, step: StepUpdates) -> None:
        """Every gradient of the step has been submitted."""
        step.closed = True
        self.worker.kick()

    def fresh(self, unit: str) -> bool:
        """Whether no update of `unit` is pending. Raises what the worker raised."""
        self.worker.check()
        return self._unfinished[unit] == 0

    def wait_fresh(self, unit: str) -> None:
        self.worker.wait_until(lambda: self._unfinished[unit] == 0)

    def watch(self, watcher: Watcher) -> None:
        """From now on tell `watcher` of updates; what has been submitted by now belongs to the state it keeps."""
        with self._lock:
            self._kept_steps = {update.step for update in self._pending}
        self._watcher = watcher

    def settled(self, unit: str) -> bool:
        """Whether all updates of `unit` that had been submitted when the watcher came are over."""
        with self._lock:
            return not any(update.unit == unit and update.step in self._kept_steps for update in self._pending)

    def unwatch(self) -> None:
        self._watcher = None

    def about_to_change(self, unit: str, step: StepUpdates) -> None:
        """Called by whoever changes a unit's state for a step, right before, in whatever thread: the watcher may have
        to take it first."""
        if (watcher := self._watcher) is not None and step not in self._kept_steps:
            watcher.before_update(unit)

    def wait_done(self, step: StepUpdates) -> None:
        """Block until the step's updates have run; its norm is known from then on."""
        self.worker.wait_until(lambda: step.done)
        if step.norm is None:
            step.settle_norm()

    # ---- in the worker

    def _work(self) -> bool:
        self._tell_records()
        update = self._next()
        if update is None:
            return False
        if update.step.max_norm is not None and update.step.norm is None:
            self._read_norm(update.step)
            update = self._next() or update  # by now others have landed, too, which are needed first
        self._run(update)
        return True

    def _next(self) -> Update | None:
        with self._lock:
            return self._choose()

    def _choose(self) -> Update | None:
        """The next update to run: the one needed first among those that can run; else the one submitted first.

        One whose state is still on its way from the disk comes behind those that need not wait.
        """
        runnable = self._runnable()
        landed = [u for u in runnable if u.landed()]
        ready = [u for u in landed if self._records.ready(u.unit)]
        return min(ready or landed or runnable[:1], key=lambda u: u.next_use, default=None)

    def _tell_records(self) -> None:
        if self._records.holds_any:
            with self._lock:
                coming = self._coming()
            self._records.expect(coming)

    def _coming(self) -> list[str]:
        """Units of the updates to run next, in the order that is likely now: landed ones by next use, then the others
        as they were submitted. Clipped ones run when all have landed."""

        def turn(update: Update) -> tuple[bool, int]:
            waits = update.step.max_norm is None and not update.landed()
            return waits, update.number if waits else update.next_use

        return [update.unit for update in sorted(self._runnable(), key=turn)]

    def _runnable(self) -> list[Update]:
        return [u for u in self._pending if u.step.max_norm is None or u.step.closed]

    def _read_norm(self, step: StepUpdates) -> None:
        updates = [u for u in self._pending if u.step is step]
        for update in updates:
            self._read_squares(update)
        step.settle_norm()
        if step.non_finite:
            for unit in {update.unit for update in updates}:
                self.about_to_change(unit, step)
                self._skip(unit)

    def _read_squares(self, update: Update) -> None:
        for gradient in update.gradients:
            gradient.landed.wait()
        squares = [float(gradient.sum_of_squares) for gradient in update.gradients]
        if not all(map(math.isfinite, squares)):
            if update.step.skip_non_finite:
                update.step.non_finite.append(update.unit)
                return
            raise NonFinite(
                f"step {update.step.hyper.step}: the gradient of {update.unit} is not finite",
                "lower learning_rate or check the batch; the last saved model is untouched",
                update.step.hyper.step,
            )
        update.step.squares[update.number] = squares

    def _run(self, update: Update) -> None:
        if not update.step.non_finite:
            self._apply(update)
        self._finish(update)

    def _apply(self, update: Update) -> None:
        step = update.step
        try:
            self._read_squares(update)
            scale = 1.0
            if step.max_norm is not None:
                assert step.norm is not None
                scale = min(1.0, step.max_norm / (step.norm + CLIP_EPSILON))
            self.about_to_change(update.unit, step)
            started = time.perf_counter()
            if update.apply is not None:
                update.apply(replace(step.hyper, grad_scale=scale))
            step.busy_seconds += time.perf_counter() - started
        except SlideFormerError:
            raise
        except Exception as error:
            raise WorkerFailed(
                f"step {step.hyper.step}: the update of {update.unit} failed: {type(error).__name__}: {error}",
                "the weights in memory are those of different steps; continue from the last saved model",
            ) from error

    def _finish(self, update: Update) -> None:
        for gradient in update.gradients:
            gradient.release()
        with self._lock:
            self._pending.remove(update)
            self._unfinished[update.unit] -= update.apply is not None
            update.step.finished += 1
        if (watcher := self._watcher) is not None:
            watcher.after_update()
