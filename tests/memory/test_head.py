"""The head's weight is on the device from `fetch` or `weight` to `release`, and always up to date."""

import torch

from slideformer.lanes.lanes import inline_lanes
from slideformer.memory.head import HeadWeight

SHAPE, NUMEL = (5, 3), 128


class Host:
    """A head whose every copy tells how many updates it has had."""

    def __init__(self) -> None:
        self.updates, self.is_fresh, self.copies = 0, True, 0

    def wait_fresh(self) -> None:
        if not self.is_fresh:
            self.is_fresh, self.updates = True, self.updates + 1

    def copy(self, out: torch.Tensor) -> None:
        assert self.is_fresh and out.shape == (NUMEL,)
        self.copies += 1
        out.copy_(torch.arange(NUMEL) + 1000 * self.updates)


def new_head(host: Host) -> HeadWeight:
    lanes = inline_lanes(torch.device("cpu"))
    return HeadWeight(lanes, SHAPE, NUMEL, torch.float32, lambda: host.is_fresh, host.wait_fresh, host.copy)


def test_a_fetched_weight_is_copied_once_in_its_shape():
    host = Host()
    head = new_head(host)
    head.fetch()
    head.fetch()
    assert torch.equal(head.weight(), torch.arange(15.0).view(SHAPE)) and host.copies == 1
    head.weight()
    assert host.copies == 1


def test_a_stale_weight_is_copied_when_it_is_used_after_its_update():
    host = Host()
    head, host.is_fresh = new_head(host), False
    head.fetch()
    assert host.copies == 0
    assert float(head.weight()[0, 0]) == 1000


def test_a_released_weight_is_copied_anew():
    host = Host()
    head = new_head(host)
    head.weight()
    head.release()
    host.updates = 3
    assert float(head.weight()[0, 1]) == 3001


def test_the_gradient_starts_at_zero_in_fp32():
    gradient = new_head(Host()).new_gradient()
    assert gradient.shape == SHAPE and gradient.dtype == torch.float32 and not gradient.any()


def test_bytes_are_of_the_weight_and_its_fp32_gradient():
    assert HeadWeight.bytes_needed(100, torch.bfloat16) == 600
