"""Closed-form learning rates against transformers' schedulers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments, get_scheduler

from slideformer.optim.lr import ScheduleName, learning_rate_at, total_steps, warmup_step_count

SCHEDULES: tuple[ScheduleName, ...] = ("linear", "cosine", "constant", "constant_with_warmup")


def transformers_rates(schedule: str, peak: float, warmup: int, total: int, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 50), (1, 50), (7, 50), (50, 50), (60, 50), (0, 1)])
def test_equals_get_scheduler(schedule: ScheduleName, warmup: int, total: int):
    theirs = transformers_rates(schedule, 3e-4, warmup, total, steps=total + 5)
    ours = [
        learning_rate_at(step, schedule=schedule, learning_rate=3e-4, warmup_steps=warmup, total_steps=total)
        for step in range(total + 5)
    ]
    assert ours == pytest.approx(theirs, rel=1e-12, abs=0)


@given(st.sampled_from(SCHEDULES), st.floats(1e-7, 1.0), st.integers(0, 30), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_equals_get_scheduler_anywhere(schedule: ScheduleName, peak: float, warmup: int, total: int):
    theirs = transformers_rates(schedule, peak, warmup, total, steps=total)
    for step, rate in enumerate(theirs):
        ours = learning_rate_at(step, schedule=schedule, learning_rate=peak, warmup_steps=warmup, total_steps=total)
        assert math.isclose(ours, rate, rel_tol=1e-12)


@pytest.mark.parametrize("warmup_steps", [0, 1, 17, 0.03, 0.1, 0.999])
@pytest.mark.parametrize("total", [1, 10, 33, 1000])
def test_warmup_is_rounded_as_the_trainer_does(warmup_steps: float, total: int, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=warmup_steps, use_cpu=True)
    assert warmup_step_count(warmup_steps, 0.0, total) == arguments.get_warmup_steps(total)


def test_warmup_ratio_is_a_share_rounded_up():
    assert warmup_step_count(0, 0.03, 1000) == 30
    assert warmup_step_count(0, 0.1, 33) == 4
    assert warmup_step_count(0, 0.0, 33) == 0


def test_total_steps_from_max_steps_or_epochs():
    assert total_steps(max_steps=7, num_train_epochs=3, steps_per_epoch=100) == 7
    assert total_steps(max_steps=-1, num_train_epochs=3, steps_per_epoch=100) == 300
    assert total_steps(max_steps=-1, num_train_epochs=0.5, steps_per_epoch=5) == 3
