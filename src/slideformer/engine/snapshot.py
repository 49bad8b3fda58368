"""The state after one step, kept as it was while later steps change it: what a checkpoint is written from.

Each unit is *taken* once: copied, if there is memory for a copy, or else read where it lies while its next update
waits. Whoever comes first takes it: a thread that goes ahead through the units in the order of their next updates, the
optimizer, just before it changes one, or, where there is no memory, the writer. So a step waits for no more than a copy
where there is memory for the whole state, and for the writer where there is none.

The writer leaves the copies to the thread that goes ahead, as it has a lower priority: an update would wait for it.

Nobody waits in a circle: the writer waits only for updates of the step itself, and these never wait for the snapshot.
Updates of later steps may, for the writer to be done with a unit; they are submitted only once those of the step are
over, since a forward pass needs every unit that its backward updates.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from torch import Tensor

from slideformer.engine.updates import Updates
from slideformer.errors import CheckpointError
from slideformer.memory.snapshot import SnapshotMemory, StateCopy
from slideformer.storage.checkpoint import HasTensors, UnitState


class Snapshot:
    """All units as one step left them, while later steps go on; `close` it.

    Args:
        units: where the units live, in the order of their next updates.
        unit_bytes: unit -> size of its state.
        memory: for copies; nobody else's as long as this lives.
        threads: that copy a unit.
        updates: all those of the step have been submitted to it.
    """

    def __init__(
        self,
        units: Mapping[str, UnitState],
        unit_bytes: Mapping[str, int],
        memory: SnapshotMemory,
        threads: int,
        updates: Updates,
    ):
        self._units, self._bytes, self._memory, self._updates = units, unit_bytes, memory, updates
        self._threads = threads
        self._changed = threading.Condition()
        self._untaken = list(units)
        self._held: set[str] = set()  # being copied, or read where they lie
        self._copies: dict[str, StateCopy] = {}
        self._missed: dict[str, Counter[str]] = {unit: Counter() for unit in units}
        self._no_more_updates = False
        self._failure: BaseException | None = None
        self._goes_ahead = True
        self._ahead = threading.Thread(target=self._run_ahead, name="snapshot", daemon=True)
        updates.watch(self)
        self._ahead.start()

    def unit_states(self) -> dict[str, UnitState]:
        """The units, each to be opened once, in any thread; opening one waits until the step's updates of it are over.

        Raises, when one is opened:
            CheckpointError: the snapshot was closed, or training failed before the step's updates were over.
            DiskError: a unit on disk cannot be read.
        """
        return {
            unit: UnitState(state.layout, partial(self._opened, unit), self._missed[unit])
            for unit, state in self._units.items()
        }

    def before_update(self, unit: str) -> None:
        """Called before an update of a later step changes `unit`; on return the unit is no longer needed here."""
        buffer = None

        def may_go_on() -> bool:
            nonlocal buffer
            if unit in self._held:
                return False
            if unit in self._untaken:
                buffer = self._memory.take(self._bytes[unit])
                return buffer is not None
            return True

        with self._changed:
            self._changed.wait_for(may_go_on)
            if buffer is None:
                return
            self._hold(unit)
        self._copy(unit, buffer)

    def after_update(self) -> None:
        """An update has run: a unit may have settled."""
        with self._changed:
            self._changed.notify_all()

    def end_of_updates(self) -> None:
        """Training failed: what has not settled never will. The rest can still be written."""
        with self._changed:
            self._no_more_updates = True
            self._changed.notify_all()

    def close(self) -> None:
        """Forget what has not been taken; no update waits for it any more."""
        self._updates.unwatch()
        with self._changed:
            self._untaken.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._held)
            for copy in self._copies.values():
                self._memory.give_back(copy.buffer)
            self._copies.clear()
        self._ahead.join()

    # ---- taking

    def _run_ahead(self) -> None:
        failure = None
        try:
            self._take_ahead()
        except BaseException as error:  # the writer tells
            failure = error
        with self._changed:
            self._goes_ahead = False
            if failure is not None:
                self._failure = failure
                self._untaken.clear()
            self._changed.notify_all()

    def _take_ahead(self) -> None:
        """Copy what has settled, as long as there is memory, before anybody has to wait for it."""
        while claimed := self._claim():
            self._copy(*claimed)

    def _claim(self) -> tuple[str, Tensor] | None:
        """The next unit to copy ahead, and memory for it; None once all are taken."""
        claimed = None

        def found() -> bool:
            nonlocal claimed
            claimed = next(self._claimable(), None)
            return claimed is not None or not self._untaken

        with self._changed:
            self._changed.wait_for(found)
            if claimed is not None:
                self._hold(claimed[0])
        return claimed

    def _claimable(self) -> Iterator[tuple[str, Tensor]]:
        for unit in self._untaken:
            if self._updates.settled(unit) and (buffer := self._memory.take(self._bytes[unit])) is not None:
                yield unit, buffer

    def _hold(self, unit: str) -> None:
        self._untaken.remove(unit)
        self._held.add(unit)

    def _let_go(self, unit: str) -> None:
        with self._changed:
            self._held.remove(unit)
            self._changed.notify_all()

    def _copy(self, unit: str, buffer: Tensor) -> None:
        """Into the buffer; the unit is held."""
        copy = None
        try:
            with self._read_in_place(unit) as state:
                copy = StateCopy(state.tensors(), buffer, self._threads)
        finally:
            with self._changed:
                if copy is None:
                    self._memory.give_back(buffer)
                else:
                    self._copies[unit] = copy
            self._let_go(unit)

    @contextmanager
    def _read_in_place(self, unit: str) -> Iterator[HasTensors]:
        state = self._units[unit]
        with state.opened(False) as opened:
            self._missed[unit].update(state.missed)
            yield opened

    # ---- the writer's side

    def _opened(self, unit: str, change: bool) -> AbstractContextManager[HasTensors]:
        assert not change, "a snapshot is only read"
        with self._changed:
            self._changed.wait_for(lambda: unit not in self._held and self._may_be_opened(unit))
            if unit in self._copies:
                return self._opened_copy(self._copies.pop(unit))
            self._check_there(unit)
            buffer = self._memory.take(self._bytes[unit])
            self._hold(unit)
        if buffer is None:
            return self._opened_in_place(unit)
        self._copy(unit, buffer)
        return self._opened(unit, change)

    def _may_be_opened(self, unit: str) -> bool:
        if unit not in self._untaken:
            return True
        if self._updates.settled(unit):
            return not (self._goes_ahead and self._memory.has_room_for(self._bytes[unit]))
        return self._no_more_updates

    def _check_there(self, unit: str) -> None:
        if unit not in self._untaken:
            raise self._failure or CheckpointError("the checkpoint was given up")
        if not self._updates.settled(unit):
            raise CheckpointError(f"training failed before {unit} was updated; earlier checkpoints are whole")

    @contextmanager
    def _opened_copy(self, copy: StateCopy) -> Iterator[StateCopy]:
        try:
            yield copy
        finally:
            with self._changed:
                self._memory.give_back(copy.buffer)
                self._changed.notify_all()

    @contextmanager
    def _opened_in_place(self, unit: str) -> Iterator[HasTensors]:
        try:
            with self._read_in_place(unit) as state:
                yield state
        finally:
            self._let_go(unit)
