"""The learning rate at step n, in closed form, so that a resumed run needs no scheduler state.

The formulas are those behind `transformers.get_scheduler` and its Trainer.
"""

import math
from typing import Literal

ScheduleName = Literal["linear", "cosine", "constant", "constant_with_warmup"]


def total_steps(max_steps: int, num_train_epochs: float, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run; `max_steps` = -1 counts epochs, a part of an epoch rounded up to a step."""
    return max_steps if max_steps > 0 else math.ceil(num_train_epochs * max(1, steps_per_epoch))


def warmup_step_count(warmup_steps: float, warmup_ratio: float, total_steps: int) -> int:
    """Steps of warm-up; `warmup_steps` below 1 and `warmup_ratio` are shares of `total_steps`, rounded up."""
    if warmup_steps >= 1:
        return int(warmup_steps)
    return math.ceil(total_steps * (warmup_steps or warmup_ratio))


def learning_rate_at(
    step: int, *, schedule: ScheduleName, learning_rate: float, warmup_steps: int, total_steps: int
) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    Args:
        schedule: "constant" ignores warm-up, as in transformers.
        learning_rate: the peak, reached at step `warmup_steps`.
        total_steps: where "linear" and "cosine" reach 0.
    """
    if schedule == "constant":
        return learning_rate
    if step < warmup_steps:
        return learning_rate * (step / warmup_steps)
    if schedule == "constant_with_warmup":
        return learning_rate
    decay_steps = max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return learning_rate * max(0.0, (total_steps - step) / decay_steps)
    progress = (step - warmup_steps) / decay_steps
    return learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
