"""Token ids arrive in their shapes, step after step through one buffer."""

import torch

from slideformer.lanes.lanes import inline_lanes
from slideformer.memory.feed import TokenFeed
from slideformer.memory.host import HostAllocator


def test_tensors_arrive_in_their_shapes():
    allocator = HostAllocator(pin=False)
    feed = TokenFeed(inline_lanes(torch.device("cpu")), allocator, capacity=12)
    assert allocator.allocated_bytes == {"token ids": TokenFeed.bytes_needed(12)} == {"token ids": 96}
    kept = []
    for step in range(2):
        sent = [torch.arange(6).view(2, 3) + step, torch.arange(4) * 10, torch.arange(0)]
        received = feed.send(sent)
        assert all(torch.equal(a, b) for a, b in zip(sent, received, strict=True))
        kept.append(received)
    assert kept[0][0][0, 0] == 0  # a later step does not write over an earlier one's
