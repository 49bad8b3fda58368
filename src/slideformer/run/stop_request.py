"""SIGTERM and SIGINT as a wish that the training loop reads between two steps."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from slideformer.listeners.events import Wishes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While entered, the first signal wishes for a stop, and the second ends the process at once.

    Python delivers signals to the main thread only; in any other one this is a flag that nobody sets.
    """

    def __init__(self, wishes: Wishes):
        self._wishes = wishes
        self._signalled = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._signalled:
            os.write(2, f"\n{name} again: exiting without saving\n".encode())
            os._exit(128 + number)
        self._signalled = self._wishes.stop = True
        os.write(2, f"\n{name}: finishing this step, then saving; once more to exit at once\n".encode())
