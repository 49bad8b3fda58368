"""Lanes: ordered queues of work (compute, host-to-device, device-to-host, update) and the fences between them.

One interface, three backends:

- `accelerator_lanes`: a lane is a stream of the device (CUDA, ROCm, XPU), a fence an event, the worker a thread.
- `inline_lanes`: work runs when it is submitted. For training on the CPU.
- `slideformer.schedule_fuzzer.fuzzed_lanes`: work runs at any moment the fences allow, chosen by a seed. For tests.

Rules the engine keeps, which the third backend checks: a lane sees another lane's result only after waiting on a fence
recorded behind it, and the host touches a buffer only after `Fence.wait`.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slideformer.errors import SlideFormerError, WorkerFailed

SWITCH_SECONDS = 5e-4


class Fence(Protocol):
    """A point in a lane: done once everything submitted to the lane before it has run."""

    def done(self) -> bool: ...

    def wait(self) -> None:
        """Block the host until done."""
        ...


class Lane(Protocol):
    """Work in order of submission, asynchronous to the host and to other lanes."""

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """Submit `work(*args)`; the result may be handed to later `run` calls, and is read by the host only after a
        fence."""
        ...

    def record(self) -> Fence: ...

    def wait(self, fence: Fence) -> None:
        """Later work of this lane starts after `fence`; the host does not block."""
        ...


class Worker(Protocol):
    """One background thread of control that calls `work()` while it returns True."""

    def kick(self) -> None:
        """There may be new work."""
        ...

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Block until `condition()`, re-raising what the worker raised.

        Raises:
            WorkerFailed: the worker died of an exception (its `__cause__`), or closed first.
        """
        ...

    def check(self) -> None:
        """Raise what the worker raised, if it did."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Lanes:
    """The lanes of one device, and how a background worker is started.

    `update` is for updates of states on the device that the worker submits; the main thread submits to the others.
    """

    device: torch.device
    compute: Lane
    h2d: Lane
    d2h: Lane
    update: Lane
    start_worker: Callable[[str, Callable[[], bool]], Worker]

    def empty(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        """Memory on the device, for computation submitted next. It may be what earlier computation still uses, so
        another lane writes it only behind a fence of the compute lane."""
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)


class StreamLane:
    """A lane on a stream of the accelerator."""

    def __init__(self, stream: torch.Stream):
        self.stream = stream

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        with self.stream:
            return work(*args)

    def record(self) -> Fence:
        return EventFence(self.stream.record_event())

    def wait(self, fence: Fence) -> None:
        assert isinstance(fence, EventFence)
        self.stream.wait_event(fence.event)


class ComputeLane(StreamLane):
    """The stream the host thread already uses: nothing to switch."""

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)


class EventFence:
    """Remembers that it is done: asking an event gives the interpreter away, and many threads want it."""

    def __init__(self, event: torch.Event):
        self.event = event
        self._done = False

    def done(self) -> bool:
        self._done = self._done or self.event.query()
        return self._done

    def wait(self) -> None:
        if not self._done:
            self.event.synchronize()
            self._done = True


class InlineLane:
    """A lane whose work runs at once, in the caller's thread."""

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)

    def record(self) -> Fence:
        return PASSED

    def wait(self, fence: Fence) -> None:
        pass


class PassedFence:
    """A fence with nothing before it."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


PASSED = PassedFence()


class ThreadWorker:
    """A daemon thread, from the first kick on: calls `work()` until it returns False, then sleeps until kicked."""

    def __init__(self, name: str, work: Callable[[], bool]):
        self._work = work
        self._condition = threading.Condition()
        self._kicked = False
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def kick(self) -> None:
        with self._condition:
            self._kicked = True
            if self._thread.ident is None and not self._closed:
                self._thread.start()
            self._condition.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._condition:
            self._condition.wait_for(lambda: condition() or self._error is not None or self._closed)
        self.check()
        if not condition():
            raise WorkerFailed(f"the worker {self._thread.name!r} was closed while its result was awaited")

    def check(self) -> None:
        raise_worker_error(self._thread.name, self._error)

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _loop(self) -> None:
        try:
            while self._next_kick():
                while not self._closed and self._work():
                    with self._condition:
                        self._condition.notify_all()
        except BaseException as error:
            with self._condition:
                self._error = error
                self._condition.notify_all()

    def _next_kick(self) -> bool:
        with self._condition:
            self._condition.wait_for(lambda: self._kicked or self._closed)
            self._kicked = False
            return not self._closed


def raise_worker_error(name: str, error: BaseException | None) -> None:
    """Surface a worker's exception in the caller's thread, as itself where it is one of the project's."""
    if error is None:
        return
    if isinstance(error, SlideFormerError):
        raise error
    raise WorkerFailed(f"the worker {name!r} failed: {type(error).__name__}: {error}") from error


def accelerator_lanes(device: torch.device) -> Lanes:
    """Lanes on streams of `device`; compute is the stream that is current now.

    From then on threads of this process hand the interpreter on after half a millisecond instead of five: the worker
    needs it between two updates, while the main thread submits without a pause.
    """
    sys.setswitchinterval(min(SWITCH_SECONDS, sys.getswitchinterval()))
    compute = torch.accelerator.current_stream(device)
    return Lanes(
        device,
        ComputeLane(compute),
        StreamLane(torch.Stream(device)),
        StreamLane(torch.Stream(device)),
        StreamLane(torch.Stream(device)),
        ThreadWorker,
    )


def inline_lanes(device: torch.device) -> Lanes:
    """Lanes for a device that is the host itself."""
    lane = InlineLane()
    return Lanes(device, lane, lane, lane, lane, ThreadWorker)


def lanes_for(device: torch.device) -> Lanes:
    """The lanes training uses on `device`."""
    return inline_lanes(device) if device.type == "cpu" else accelerator_lanes(device)
