"""A step's schedule, played through in time: which piece of work runs when, if each takes so many seconds.

The rules are those of `engine/step.py`, `engine/updates.py`, and of the stores in `memory/`, with fences
as points in time. Steps follow each other until the distance between two of them is that of every later one.
"""

from dataclasses import dataclass, field

from slideformer.plan.disk_queue import DiskQueue, Pending, Span, Staging
from slideformer.plan.step_work import StepWork

STEPS = 4  # the first begins with nothing pending, and the last leaves its updates to the next; shown is the third
BEFORE_BLOCKS = -1  # what the next forward needs before block 0
LANES = ("calls", "compute", "h2d", "d2h", "adamw", "disk")
NOT_ALWAYS = ("calls", "disk")
STAGING = 2  # gradients, or outputs, that may leave the GPU while computation goes on; outputs that may be back


@dataclass(frozen=True)
class Schedule:
    """A step among equals.

    Attributes:
        seconds: from the end of one step's computation to that of the next.
        spans: what runs within that time; updates at its beginning are those of the step before.
    """

    seconds: float
    spans: list[Span]

    def busy_seconds(self, lane: str) -> float:
        return sum(span.stop - span.start for span in self.spans if span.lane == lane)

    @property
    def lanes(self) -> dict[str, float]:
        """Busy seconds by lane; the disk is one if something is there, and calls if the device is not the host."""
        busy = {lane: self.busy_seconds(lane) for lane in LANES}
        return {lane: seconds for lane, seconds in busy.items() if seconds or lane not in NOT_ALWAYS}


def play(work: StepWork) -> Schedule:
    """The schedule of a step in the middle of a run."""
    player = Player(work)
    ends = [player.step() for _ in range(STEPS)]
    begin, end = ends[-3:-1]
    spans = [
        Span(s.lane, s.what, max(s.start, begin) - begin, min(s.stop, end) - begin)
        for s in player.spans
        if s.stop > begin and s.start < end and s.stop > s.start
    ]
    return Schedule(end - begin, spans)


@dataclass
class Player:
    """Plays step after step.

    Attributes:
        free: when each lane has nothing more to do.
        fresh: unit -> when its last update is over.
        pending: updates that have not run.
    """

    work: StepWork
    spans: list[Span] = field(default_factory=list)
    free: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LANES, 0.0))
    fresh: dict[str, float] = field(default_factory=dict)
    pending: list[Pending] = field(default_factory=list)
    occupied: int = 0  # gradient slots of blocks whose update has not run
    disk: DiskQueue = field(init=False)

    def __post_init__(self) -> None:
        self.disk = DiskQueue(self.spans, self.work.buffers)
        self._weights = Staging(self.work.weight_buffers)
        self._boundaries = Staging(self.work.boundary_buffers)
        self._saved = 0.0  # the last boundary is off the GPU
        self._left: list[float] = []  # when each block's outputs are off the GPU
        self._turned = 0.0  # the end of forward, from which on boundaries are read
        self._ends = [0.0, 0.0]  # of the computation of the last steps

    def step(self) -> float:
        """One step; returns when its computation ends."""
        self._hold_calls(self._ends[-2])  # losses are read, if late: the host is never two steps ahead
        arrived = self._forward()
        landed = self._head(arrived)
        self._ends.append(self._backward(landed))
        return self._ends[-1]

    def _run(self, lane: str, what: str, seconds: float, *after: float) -> float:
        """Put work on a lane behind what is there and behind points in time; returns its end."""
        start = max(self.free[lane], *after) if after else self.free[lane]
        self.free[lane] = start + seconds
        self.spans.append(Span(lane, what, start, self.free[lane]))
        return self.free[lane]

    def _compute(self, what: str, seconds: float, call_seconds: float, *after: float) -> float:
        """The device computes what the host calls, and neither begins nor ends before it; returns the end."""
        begun = self.free["calls"]
        called = self._run("calls", what, call_seconds)
        self.free["compute"] = max(self.free["compute"], begun, called - seconds)
        return self._run("compute", what, seconds, *after)

    def _hold_calls(self, moment: float) -> None:
        """The host waits until then, and calls nothing meanwhile."""
        self.free["calls"] = max(self.free["calls"], moment)

    def _forward(self) -> float:
        """Through the blocks; returns when the head's weight is there."""
        w, n = self.work, len(self.work.forward)
        self._left.clear()
        ahead = self.free["compute"]  # the host has run ahead, but not into a window that is still in use
        inputs = self._run("h2d", "inputs", w.fetch_inputs, self._wait_fresh("embedding"))
        released: list[float] = []
        for i in range(n):
            there = self._place_for_outputs(i)
            if (k := i - w.resident) >= 0:
                free = released[k - w.depth] if k >= w.depth else ahead
                self._hold_calls(fresh := self._wait_fresh(f"block {i}"))
                there = max(there, self._fetch(i, fresh, free))
            done = self._compute(f"forward {i}", w.forward[i], w.call_forward[i], inputs, there)
            if k >= 0:
                released.append(done)
            begun = done - w.forward[i]
            if w.save[i]:
                self._save(i, begun)
            if w.save_outputs[i]:
                first = begun + w.forward[i] / w.micro_batches
                self._left.append(self._run("d2h", f"save outputs {i}", w.save_outputs[i], first))
        return self._run("h2d", "fetch head", w.fetch_head, self._wait_fresh("embedding" if w.tied else "head"))

    def _head(self, arrived: float) -> float:
        w, self._turned = self.work, max(self.free["compute"], self._saved)  # the boundaries' memory is needed
        done = self._run("compute", "head", w.head, arrived, self._turned)
        landed = self._run("d2h", "send head", w.send_head, done)
        if not w.tied:
            self._submit("head", w.update_head, len(w.forward), landed)
        self._submit("embedding", w.update_table, BEFORE_BLOCKS, landed if w.tied else done)
        return done

    def _backward(self, done: float) -> float:
        w, n = self.work, len(self.work.backward)
        left: list[float] = []  # when each gradient is off the GPU
        released: list[float] = []
        read: list[float] = []  # when each block's outputs are no longer read
        for i in reversed(range(n)):
            k = n - 1 - i
            loaded = self._load(i) if w.load[i] else 0.0
            there = done
            if k >= w.depth and i >= w.resident:
                there = self._fetch(i, released[k - w.depth])
            if w.load_outputs[i]:
                earliest = read[-STAGING] if len(read) >= STAGING else self._turned
                loaded = self._run("h2d", f"load outputs {i}", w.load_outputs[i], earliest)
            staged = left[k - STAGING] if k >= STAGING else 0.0
            waits = (loaded, there, staged)
            released.append(self._compute(f"backward {i}", w.backward[i], w.call_backward[i], *waits))
            read.extend(released[-1:] if w.save_outputs[i] else [])
            left.append(released[-1] if i < w.resident else self._send_block(i, released[-1]))
        landed = self._run("d2h", "send rows", 0.0, released[-1])
        self._submit("embedding", w.update_rows, BEFORE_BLOCKS, landed)
        self._release_clipped(landed)
        return self.free["compute"]

    def _fetch(self, i: int, *after: float) -> float:
        """Weights to the GPU, from the disk if they are there: as soon as the last update's are, and there is room."""
        seconds = self.work.read_weights[i]
        if not seconds:
            return self._run("h2d", f"fetch {i}", self.work.fetch[i], *after)
        written = self.disk.written.get(f"block {i}", 0.0)
        arrived = self.disk.run(f"read weights {i}", seconds, max(self._weights.take(), written))
        there = self._run("h2d", f"fetch {i}", self.work.fetch[i], arrived, *after)
        self._weights.give_back(there)
        return there

    def _place_for_outputs(self, i: int) -> float:
        """The outputs of block i's first forward are moved to where others have left, so it need not begin earlier."""
        w = self.work
        if not w.save_outputs[i] or len(self._left) < STAGING:
            return 0.0
        return self._left[-STAGING] - w.forward[i] / w.micro_batches

    def _save(self, i: int, begun: float) -> None:
        """A boundary from the GPU, and on to disk."""
        w = self.work
        if not w.write_boundary[i]:
            self._saved = self._run("d2h", f"save {i}", w.save[i], begun)
            return
        saved = self._saved = self._run("d2h", f"save {i}", w.save[i], begun, self._boundaries.take())
        self.disk.written[f"boundary {i}"] = self.disk.run(f"write boundary {i}", w.write_boundary[i], saved)
        self._boundaries.give_back(self.disk.written[f"boundary {i}"])

    def _load(self, i: int) -> float:
        w, arrived = self.work, 0.0
        if w.read_boundary[i]:
            earliest = max(self._boundaries.take(), self.disk.written[f"boundary {i}"], self._turned)
            arrived = self.disk.run(f"read boundary {i}", w.read_boundary[i], earliest)
        loaded = self._run("h2d", f"load {i}", w.load[i], arrived)
        if w.read_boundary[i]:
            self._boundaries.give_back(loaded)
        return loaded

    def _send_block(self, i: int, computed: float) -> float:
        w = self.work
        self._hold_calls(self._wait_for_slot())
        landed = self._run("d2h", f"send {i}", w.send[i], computed, self.free["calls"])
        self._submit(f"block {i}", w.update[i], i, landed, w.read[i], w.write[i])
        return landed

    # ---- the optimizer's thread

    def _submit(
        self, unit: str, seconds: float, next_use: int, landed: float, read: float = 0.0, write: float = 0.0
    ) -> None:
        if not seconds:
            return  # nothing of it is trained, or not by the CPU
        runnable = float("inf") if self.work.clipping else landed
        update = Pending(unit, seconds, next_use, runnable, write)
        self.pending.append(update)
        self.occupied += unit.startswith("block")
        if read:
            self.disk.expect(update, read, landed)

    def _release_clipped(self, landed: float) -> None:
        """The last gradient has landed, so the norm is known."""
        for update in self.pending:
            update.runnable = min(update.runnable, max(landed, self.free["d2h"]))

    def _wait_for_slot(self) -> float:
        """When a gradient slot is free. With clipping there is one for each block."""
        moment = 0.0
        while not self.work.clipping and self.occupied >= self.work.slots:
            moment = self._update_next()
        return moment

    def _wait_fresh(self, unit: str) -> float:
        while any(update.unit == unit for update in self.pending):
            self._update_next()
        return self.fresh.get(unit, 0.0)

    def _update_next(self) -> float:
        """Of the updates that can run, the one whose unit is used first; else the one that can run first."""
        now = self.free["adamw"]
        ready = [update for update in self.pending if update.ready <= now]
        first = min(ready or self.pending, key=lambda u: (0.0 if ready else u.ready, u.next_use))
        self.pending.remove(first)
        done = self._run("adamw", f"update {first.unit}", first.seconds, first.ready)
        if first.write:
            self.disk.write_back(first, done)
        self.fresh[first.unit] = done
        self.occupied -= first.unit.startswith("block")
        return done


def play_in_turn(work: StepWork) -> Schedule:
    """The schedule where the host computes as well: its cores do one thing after the other, whoever asks for it."""
    played, moment = play(work), 0.0
    spans = []
    for span in sorted(played.spans, key=lambda s: (s.start, s.stop)):
        spans.append(Span(span.lane, span.what, moment, moment + span.stop - span.start))
        moment = spans[-1].stop
    return Schedule(moment, spans)
