"""A part of the records is kept for evaluation: the same one whenever it is drawn, and none of it is trained."""

import pytest
import torch

from slideformer.data.examples import DataReport, Examples
from slideformer.data.held_out import hold_out, longest_first
from slideformer.data.load import LoadedData
from slideformer.data.mixture import Mixture
from slideformer.errors import DataError


def data(*counts: int) -> LoadedData:
    """Example i has i % 5 + 2 tokens, all of them i."""
    total = sum(counts)
    lengths = [i % 5 + 2 for i in range(total)]
    tokens = torch.cat([torch.full((length,), i, dtype=torch.int32) for i, length in enumerate(lengths)])
    bounds = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    examples = Examples(tokens, tokens, bounds, torch.arange(total))
    return LoadedData(examples, [DataReport()] * len(counts), Mixture(counts, [1.0] * len(counts)))


def numbers(examples: Examples) -> list[int]:
    assert all(bool((example.input_ids == example.index).all()) for example in examples)
    return [example.index for example in examples]


@pytest.mark.parametrize(("size", "held"), [(0.25, 5), (0.05, 1), (7, 7), (1, 1)])
def test_every_record_is_on_one_side(size: float, held: int):
    trained, evaluated = hold_out(data(20), size, seed=3)
    assert len(evaluated) == held and trained.mixture.counts == [20 - held]
    assert sorted(numbers(trained.examples) + numbers(evaluated)) == list(range(20))


def test_the_seed_draws():
    first = numbers(hold_out(data(40), 0.2, seed=1)[1])
    assert first == numbers(hold_out(data(40), 0.2, seed=1)[1]) != numbers(hold_out(data(40), 0.2, seed=2)[1])


def test_every_source_gives_the_same_share():
    trained, evaluated = hold_out(data(40, 10), 0.2, seed=1)
    assert trained.mixture.counts == [32, 8]
    assert sum(number >= 40 for number in numbers(evaluated)) == 2
    assert [number >= 40 for number in numbers(trained.examples)] == [False] * 32 + [True] * 8


@pytest.mark.parametrize(("size", "words"), [(20, "holds out all"), (0.01, "holds out none"), (50, "holds out all")])
def test_a_side_without_records_is_refused(size: float, words: str):
    with pytest.raises(DataError, match=words):
        hold_out(data(20), size, seed=1)


def test_the_longest_come_first():
    examples = longest_first(data(12).examples)
    assert examples.lengths.tolist() == sorted(data(12).examples.lengths.tolist(), reverse=True)
    assert numbers(examples)[:2] == [4, 9]
