"""How a run tells of itself, and what may be asked of it: between the training loop and whatever watches it."""

from dataclasses import dataclass
from pathlib import Path

from slideformer.listeners.metrics import EvalStats, RunRecord, Sample, StepStats


class Listener:
    """What wants to know how a run goes; every method may be left as it is.

    Calls come from the training thread, in the order of the run.
    """

    def began(self, run: RunRecord, done_steps: int) -> None:
        """The model is loaded; `done_steps` were done by an earlier run that this one continues."""

    def stepped(self, stats: StepStats) -> None:
        """A step is over. Told while the next one runs, so that reading its numbers holds nothing up."""

    def evaluated(self, stats: EvalStats) -> None:
        """Held-out data has been evaluated."""

    def sampled(self, samples: list[Sample]) -> None:
        """The model has answered the sample prompts."""

    def saved(self, step: int, path: Path) -> None:
        """A checkpoint, or at the last step the model, has been written to `path`."""

    def ended(self) -> None:
        """The run is over, or failed."""


@dataclass
class Wishes:
    """What a listener may ask for; the loop looks between two steps, and clears what it has done.

    Attributes:
        stop: save a checkpoint and end, to go on later.
        finish: end as if this step were the last: save the model.
    """

    stop: bool = False
    finish: bool = False
    save: bool = False
    evaluate: bool = False


class Listeners(Listener):
    """Several as one, told in order. All are told of the end, also when one of them fails."""

    def __init__(self, *listeners: Listener):
        self._all = listeners

    def began(self, run: RunRecord, done_steps: int) -> None:
        for listener in self._all:
            listener.began(run, done_steps)

    def stepped(self, stats: StepStats) -> None:
        for listener in self._all:
            listener.stepped(stats)

    def evaluated(self, stats: EvalStats) -> None:
        for listener in self._all:
            listener.evaluated(stats)

    def sampled(self, samples: list[Sample]) -> None:
        for listener in self._all:
            listener.sampled(samples)

    def saved(self, step: int, path: Path) -> None:
        for listener in self._all:
            listener.saved(step, path)

    def ended(self) -> None:
        failure: Exception | None = None
        for listener in self._all:
            try:
                listener.ended()
            except Exception as error:
                failure = failure or error
        if failure:
            raise failure
