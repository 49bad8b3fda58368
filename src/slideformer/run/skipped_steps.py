"""Steps that are left out because their gradient is not finite: told, counted, and not without end."""

from slideformer.errors import NonFinite
from slideformer.listeners.events import Listener
from slideformer.listeners.metrics import StepStats


class SkippedSteps(Listener):
    """Says which steps were left out, and ends the run when there are too many in a row.

    Args:
        most_in_a_row: more than these raise NonFinite, from `stepped`: a batch may be broken, a model that stays broken
            must not run for days.
    """

    def __init__(self, most_in_a_row: int):
        self._most = most_in_a_row
        self._in_a_row = self.total = 0

    def stepped(self, stats: StepStats) -> None:
        if not stats.non_finite:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.total += 1
        print(f"step {stats.step} left out ({self.total} so far): not finite is the gradient of {stats.non_finite}")
        if self._in_a_row > self._most:
            raise NonFinite(
                f"step {stats.step}: the gradient of {stats.non_finite} is not finite, step {self._in_a_row} in a row",
                "lower learning_rate or check the data; weights are those of the step before the first of them",
                stats.step,
            )

    def ended(self) -> None:
        if self.total:
            print(f"{self.total} steps were left out because their gradient was not finite")
