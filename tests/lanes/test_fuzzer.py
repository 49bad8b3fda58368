"""The fuzzed lanes keep the rules of real ones and punish those who break them."""

import pytest
import torch
from torch import Tensor

from slideformer.errors import WorkerFailed
from slideformer.lanes.fuzzer import fuzzed_lanes

SEEDS = range(40)


class Never:
    def done(self) -> bool:
        return False

    def wait(self) -> None:
        raise AssertionError


def copy(source: Tensor, destination: Tensor) -> None:
    destination.copy_(source)


def outcomes(ordered: bool) -> set[float]:
    """What a copy to the host finds after two writes on the compute lane, over seeds."""
    found = set()
    for seed in SEEDS:
        lanes, _ = fuzzed_lanes(seed)
        device, host = torch.zeros(1), torch.zeros(1)
        lanes.compute.run(device.fill_, 1.0)
        lanes.compute.run(device.fill_, 2.0)
        if ordered:
            lanes.d2h.wait(lanes.compute.record())
        lanes.d2h.run(copy, device, host)
        lanes.d2h.record().wait()
        found.add(float(host))
    return found


def test_lanes_overtake_each_other_unless_a_fence_forbids_it():
    assert outcomes(ordered=True) == {2.0}
    assert outcomes(ordered=False) == {0.0, 1.0, 2.0}


def test_a_lane_keeps_its_own_order():
    for seed in SEEDS:
        lanes, _ = fuzzed_lanes(seed)
        order: list[int] = []
        for k in range(5):
            lanes.h2d.run(order.append, k)
        lanes.h2d.record().wait()
        assert order == [0, 1, 2, 3, 4]


def test_a_result_used_before_it_is_computed_is_an_error():
    def use_early(seed: int) -> bool:
        lanes, _ = fuzzed_lanes(seed)
        try:
            lanes.d2h.run(copy, lanes.compute.run(torch.ones, 1), torch.zeros(1))
            lanes.d2h.record().wait()
        except RuntimeError as error:
            return "a wait is missing" in str(error)
        return False

    assert any(map(use_early, SEEDS))


def test_new_memory_belongs_to_the_compute_lane():
    def is_overwritten(seed: int) -> bool:
        lanes, _ = fuzzed_lanes(seed)
        memory = lanes.empty((1,), torch.float32)
        lanes.h2d.run(memory.fill_, 1.0)
        lanes.h2d.record().wait()
        lanes.compute.record().wait()
        return bool(memory.isnan())

    assert any(map(is_overwritten, SEEDS))


def test_memory_of_a_dropped_result_is_used_again():
    def is_overwritten(seed: int) -> bool:
        lanes, _ = fuzzed_lanes(seed)
        host = torch.zeros(1)
        result = lanes.compute.run(torch.ones, 1)
        lanes.d2h.wait(lanes.compute.record())
        lanes.d2h.run(copy, result, host)
        del result
        lanes.compute.run(torch.ones, 1)
        lanes.compute.record().wait()
        lanes.d2h.record().wait()
        return bool(host.isnan())

    assert any(map(is_overwritten, SEEDS))


def test_waiting_for_what_nobody_does_is_an_error():
    lanes, _ = fuzzed_lanes(0)
    lanes.compute.wait(Never())
    with pytest.raises(WorkerFailed, match="deadlock"):
        lanes.compute.record().wait()


def test_a_wait_can_be_left_out_by_its_line():
    def finishes(ignored_wait: str | None) -> tuple[bool, str]:
        lanes, scheduler = fuzzed_lanes(0, ignored_wait)
        lanes.compute.wait(Never())
        (site,) = scheduler.wait_sites
        try:
            lanes.compute.record().wait()
        except WorkerFailed:
            return False, site
        return True, site

    finished, site = finishes(None)
    assert not finished and site.startswith("test_fuzzer.py:")
    assert finishes(site) == (True, site)


def test_an_error_of_the_worker_reaches_the_caller():
    lanes, _ = fuzzed_lanes(0)

    def work() -> bool:
        raise ValueError("boom")

    worker = lanes.start_worker("optimizer", work)
    worker.kick()
    with pytest.raises(WorkerFailed, match=r"'optimizer' failed: ValueError: boom"):
        worker.wait_until(lambda: False)
