"""Cross-entropy over shards of the vocabulary equals that over the whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slideformer.kernels.cross_entropy import cross_entropy_reference
from slideformer.kernels.cross_entropy_shards import SoftmaxStatistics, add_shard, shard_gradient

TESTS = Path(__file__).parents[1]
TOKENS, VOCABULARY = 17, 101


@pytest.mark.parametrize("shard", [1, 8, 50, 101])
@pytest.mark.parametrize("largest", [1.0, 100.0])
def test_equals_the_whole(shard: int, largest: float):
    torch.manual_seed(0)
    logits, targets = largest * torch.randn(TOKENS, VOCABULARY), torch.randint(VOCABULARY, (TOKENS,))
    logits[:, :8] = float("-inf")  # a whole shard that nothing can come from
    targets.clamp_(min=8)
    loss, gradient = cross_entropy_reference(logits, targets, 0.5)
    statistics = SoftmaxStatistics.of(TOKENS, targets.device)
    parts = logits.split(shard, dim=1)
    for k, part in enumerate(parts):
        add_shard(part, targets, k * shard, statistics)
    log_sum = statistics.log_sum()
    torch.testing.assert_close(0.5 * (log_sum - statistics.target_logit).sum(), loss, rtol=1e-6, atol=1e-6)
    ours = [shard_gradient(part, targets, k * shard, log_sum, 0.5) for k, part in enumerate(parts)]
    torch.testing.assert_close(torch.cat(ours, 1), gradient, rtol=1e-5, atol=1e-7)


def test_a_logit_that_is_not_a_number_shows_in_the_loss():
    logits = torch.zeros(2, 16)
    logits[1, 3] = float("nan")
    statistics = SoftmaxStatistics.of(2, logits.device)
    for first in (0, 8):
        add_shard(logits[:, first : first + 8], torch.tensor([9, 9]), first, statistics)
    assert statistics.log_sum().isnan().tolist() == [False, True]


def test_interpreted_equals_pytorch():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "interpreted_shards"], cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same values" in done.stdout
