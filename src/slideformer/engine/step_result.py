"""What came of a step, read when it is there."""

import math

from torch import Tensor

from slideformer.engine.updates import StepUpdates, Updates
from slideformer.lanes.lanes import Fence
from slideformer.memory.gradients import copy_async


class StepResult:
    """What came of a step; reading it waits for what is not there yet.

    Attributes:
        trained_tokens: tokens that the loss is a mean over.
    """

    def __init__(self, updates: Updates, pending: StepUpdates, trained_tokens: int, device_loss: Tensor, loss: Tensor):
        self._updates = updates
        self.pending = pending
        self.trained_tokens = trained_tokens
        self.device_loss = device_loss
        self._host_loss = loss
        self._loss: float | None = None
        self.landed: Fence | None = None

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the trained tokens. Waits until the step's backward is over."""
        if self._loss is None:
            assert self.landed is not None
            self.landed.wait()
            self._loss = float(self._host_loss)
        return self._loss

    def settle(self) -> None:
        """Read what a later step overwrites."""
        if self.landed is not None:
            self._loss = self.loss

    @property
    def grad_norm(self) -> float:
        """Norm of the whole gradient before clipping. Waits for the step's last update."""
        self._updates.wait_done(self.pending)
        assert self.pending.norm is not None
        return self.pending.norm

    @property
    def non_finite(self) -> list[str]:
        """Units whose gradient was not finite, so that the step was left out. Waits for the step's last update."""
        return [] if math.isfinite(self.grad_norm) else self.pending.non_finite

    @property
    def optimizer_seconds(self) -> float:
        """Time the CPU spent in AdamW for this step."""
        return self.pending.busy_seconds

    def send_loss(self) -> None:
        copy_async(self.device_loss, self._host_loss)
