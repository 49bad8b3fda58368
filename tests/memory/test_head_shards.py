"""Shards of the head arrive in order, whole, and two at a time."""

import torch

from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes, inline_lanes
from slideformer.memory.head_shards import HeadShards, shard_rows

SHAPE = (21, 4)
WEIGHT = torch.arange(84.0)


def shards_on(lanes: Lanes, waits: list[str]) -> HeadShards:
    def copy_part(start: int, out: torch.Tensor) -> None:
        out.copy_(WEIGHT[start : start + out.numel()])

    return HeadShards(lanes, SHAPE, 3, torch.float32, lambda: waits.append("fresh"), copy_part)


def test_shards_are_the_weight_in_pieces():
    waits: list[str] = []
    shards = shards_on(inline_lanes(torch.device("cpu")), waits)
    for passes in (1, 2):
        seen = [(first, weight.clone()) for first, weight in shards.each()]
        assert [first for first, _ in seen] == [0, 8, 16] and len(waits) == passes
        assert torch.equal(torch.cat([weight for _, weight in seen]), WEIGHT.view(SHAPE))


def test_a_buffer_is_not_filled_while_computation_reads_it():
    for seed in range(20):
        lanes, _ = fuzzed_lanes(seed)
        out = torch.zeros(SHAPE)
        for first, weight in shards_on(lanes, []).each():
            lanes.compute.run(out[first : first + len(weight)].copy_, weight)
        lanes.compute.record().wait()
        assert torch.equal(out, WEIGHT.view(SHAPE))


def test_shards_begin_at_multiples_of_eight_and_bytes_follow():
    assert shard_rows(151_936, 8) == 18_992 and shard_rows(64, 3) == 24 and shard_rows(20, 16) == 8
    assert HeadShards.bytes_needed((64, 10), 3, torch.bfloat16) == 24 * 10 * (2 * 2 + 4)
