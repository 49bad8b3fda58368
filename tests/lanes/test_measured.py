"""Measured lanes do the same work and say how long it took."""

import time

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import SIZES, batch_at, differences, hyper_at, make_records, states_of, subject, tiny_engine

from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import InlineLane, inline_lanes
from slideformer.lanes.measured import MeasuredLane, WallMark, measured, take_spans

CPU = torch.device("cpu")


def test_a_lane_says_how_long_its_work_ran():
    lanes = measured(inline_lanes(CPU))
    assert lanes.h2d.run(lambda value: time.sleep(0.02) or value, 7) == 7
    lanes.compute.wait(lanes.h2d.record())
    spans = take_spans(lanes)
    assert spans.h2d_seconds >= 0.02 and spans.compute_seconds == spans.d2h_seconds == 0
    assert take_spans(lanes).h2d_seconds == 0  # taken


def test_work_that_is_not_over_is_not_waited_for():
    class Later(WallMark):
        def query(self) -> bool:
            return False

    lane = MeasuredLane(InlineLane(), Later)
    lane.run(time.sleep, 0.01)
    lanes = inline_lanes(CPU)
    spans = take_spans(type(lanes)(CPU, lane, lanes.h2d, lanes.d2h, lanes.update, lanes.start_worker))
    assert len(spans.compute) == 1 and spans.compute_seconds == 0


def test_lanes_that_are_not_measured_took_no_time():
    assert take_spans(inline_lanes(CPU)).compute_seconds == 0


@pytest.mark.parametrize("fuzzed", [False, True])
def test_measuring_changes_no_bit(fuzzed: bool):
    of, records, states = subject(tiny_model("llama")), make_records(4), []
    for wrap in (lambda lanes: lanes, measured):
        lanes = wrap(fuzzed_lanes(3)[0] if fuzzed else inline_lanes(CPU))
        with tiny_engine(of, SIZES, lanes=lanes) as engine:
            engine.train_step(batch_at(records, 4, 0), hyper_at(1))
            states.append(states_of(engine))
    assert not differences(*states)
