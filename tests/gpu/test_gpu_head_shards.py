"""The head in shards on a GPU: the whole head's numbers, the same bits in every run, and less memory."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import (
    SIZES,
    States,
    Subject,
    batch_at,
    differences,
    hyper_at,
    make_records,
    states_of,
    subject,
    tiny_engine,
)

from slideformer.kernels.cross_entropy import cross_entropy_reference
from slideformer.kernels.cross_entropy_shards import SoftmaxStatistics, add_shard, shard_gradient
from slideformer.plan.sizes import Sizes

pytestmark = pytest.mark.gpu

RECORDS = make_records(12)
BASE = replace(SIZES, head_chunk=64, gradient_slots=4)  # Gemma 2's copy has four blocks, whose gradients wait


@cache
def tiny(family: str, vocabulary: int = 128) -> Subject:
    return subject(tiny_model(family, vocab_size=vocabulary), "cuda")


def trained(of: Subject, sizes: Sizes, dtype: torch.dtype) -> tuple[list[float], States]:
    seen: list[float] = []
    with tiny_engine(of, sizes, dtype) as engine:
        for k in range(2):
            result = engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), 0.5)
            seen += [result.loss, result.grad_norm]
        return seen, states_of(engine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 1000, 18_992])
def test_kernels_equal_the_whole(width: int, dtype: torch.dtype):
    torch.manual_seed(0)
    vocabulary = 2 * width + 3
    logits = (5 * torch.randn(33, vocabulary, device="cuda")).to(dtype)
    targets = torch.randint(vocabulary, (33,), device="cuda")
    loss, gradient = cross_entropy_reference(logits, targets, 0.5)
    statistics, parts = SoftmaxStatistics.of(33, logits.device), [p.contiguous() for p in logits.split(width, dim=1)]
    for k, part in enumerate(parts):
        add_shard(part, targets, k * width, statistics)
    log_sum = statistics.log_sum()
    torch.testing.assert_close(0.5 * (log_sum - statistics.target_logit).sum(), loss, rtol=1e-5, atol=1e-5)
    ours = [shard_gradient(part, targets, k * width, log_sum, 0.5) for k, part in enumerate(parts)]
    torch.testing.assert_close(torch.cat(ours, 1), gradient, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_shards_have_the_whole_heads_losses(family: str):
    whole, _ = trained(tiny(family), BASE, torch.float32)
    ours, _ = trained(tiny(family), replace(BASE, head_shards=3), torch.float32)
    assert ours == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    "place", [{}, {"window_depth": 3}, {"resident_ends": True, "resident_gradients": True}], ids=str
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_same_bits(family: str, place: dict[str, int]):
    base = replace(BASE, head_shards=3)
    one = trained(tiny(family), base, torch.bfloat16)
    other = trained(tiny(family), replace(base, **place), torch.bfloat16)
    assert one[0] == other[0] and differences(one[1], other[1]) == []


def test_a_large_head_takes_less_memory():
    of, peaks = tiny("llama", 65_536), {}
    trained(of, BASE, torch.bfloat16)  # libraries take what they keep
    for shards in (1, 8):
        with tiny_engine(of, replace(BASE, head_shards=shards), torch.bfloat16) as engine:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1), 0.5)
            engine.drain()
            peaks[shards] = torch.cuda.max_memory_allocated() - before
    assert peaks[8] < peaks[1] / 3
