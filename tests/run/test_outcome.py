"""What a run took stands beside what its plan said."""

from dataclasses import replace

import pytest
from made_up_plans import plan
from made_up_timings import timing

from slideformer.listeners.metrics import StepStats
from slideformer.run.outcome import MOST_STEPS, StepTimes, predicted_against_measured


def times(*seconds: float) -> StepTimes:
    listener = StepTimes()
    for step, value in enumerate(seconds, start=1):
        listener.stepped(StepStats(step, 1.0, 1.0, 1e-5, 10, 10, value, 10 / value, 0, 0))
    return listener


def test_the_first_step_does_not_count():
    assert times().median is None and times(9.0).median is None
    assert times(9.0, 1.0, 3.0, 2.0).median == 2.0


def test_a_long_run_takes_no_more_memory_and_has_nearly_the_same_median():
    steps = 5 * MOST_STEPS
    listener = times(9.0, *(1.0 + k / steps for k in range(steps)))
    assert len(listener._seconds) < MOST_STEPS
    assert listener.median == pytest.approx(1.5, abs=0.01)


def test_seconds_are_compared_where_both_are_known():
    on_cpu = plan(gpu=None)
    predicted = timing()
    timed = replace(on_cpu, timing=predicted)
    text = predicted_against_measured(timed, 2.0)
    assert text.startswith("host: predicted ") and f"step: predicted {predicted.seconds:.3g} s, measured 2 s" in text
    assert "step" not in predicted_against_measured(on_cpu, 2.0) and "GPU" not in text
    assert "step" not in predicted_against_measured(timed, None)
