"""An average step is that of the run's batches: padding computes, and packed documents do not see each other."""

from collections.abc import Sequence

import pytest
import torch

from slideformer.data.batches import BatchStream
from slideformer.data.examples import Example
from slideformer.prepare.forecast import average_step


def stream(lengths: Sequence[int], batch_size: int, row_length: int | None = None) -> BatchStream:
    ids = [torch.arange(length, dtype=torch.int32) for length in lengths]
    labels = [torch.where(of_one < 2, -100, of_one) for of_one in ids]
    examples = [Example(k, *pair) for k, pair in enumerate(zip(ids, labels, strict=True))]
    return BatchStream(examples, batch_size, shuffle=False, seed=0, pad_id=0, row_length=row_length)


def test_micro_batches_are_padded_to_their_own_longest():
    step = average_step(stream([10, 4, 6, 6], 4), steps=3, micro_batch_size=2)
    assert (step.tokens, step.computed) == (26, 2 * 10 + 2 * 6)
    assert step.context == pytest.approx((2 * 10**2 + 2 * 6**2) / 32)
    assert 0 < step.trained <= 26 - 4


def test_all_parts_of_a_run_count():
    step = average_step(stream([10, 10, 4, 4], 2), steps=2, micro_batch_size=2)
    assert step.tokens == 14 and step.computed == 14


def test_documents_of_a_packed_row_do_not_see_each_other():
    step = average_step(stream([8, 8], 1, row_length=16), steps=1, micro_batch_size=1)
    assert step.computed == 16 and step.context == pytest.approx(2 * 8**2 / 16)
