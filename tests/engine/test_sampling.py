"""Tokens are chosen as transformers would: greedily, or among the likeliest ones."""

import pytest
import torch

from slideformer.engine.sampling import Decoding, Sampler
from slideformer.errors import NonFinite

LOGITS = torch.tensor([[0.0, 3.0, 2.0, 1.0], [1.0, 0.0, 0.0, 0.5]])


def drawn(count: int = 400, **settings: float) -> list[int]:
    """Tokens of the first row, drawn again and again."""
    sampler = Sampler(Decoding(1, **settings))  # type: ignore[arg-type]
    generator = sampler.generator(0)
    return [sampler.choose(LOGITS[:1].clone(), [generator])[0] for _ in range(count)]


def test_at_temperature_0_it_is_the_likeliest():
    assert Sampler(Decoding(1)).choose(LOGITS.clone(), []) == [1, 0]


def test_shares_are_the_probabilities_at_that_temperature():
    for temperature in (1.0, 2.0):
        found = torch.bincount(torch.tensor(drawn(2000, temperature=temperature)), minlength=4) / 2000
        torch.testing.assert_close(found, (LOGITS[0] / temperature).softmax(-1), atol=0.04, rtol=0)


def test_top_k_and_top_p_leave_out_the_rest():
    assert set(drawn(temperature=5.0, top_k=2)) == {1, 2}
    assert set(drawn(temperature=1.0, top_p=0.7)) == {1, 2}  # 0.64 + 0.24
    assert set(drawn(temperature=1.0, top_p=0.5)) == {1}


def test_every_prompt_draws_by_itself():
    sampler = Sampler(Decoding(1, temperature=1.0, seed=7))
    first, again, second = (torch.rand(8, generator=sampler.generator(number)) for number in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert not torch.equal(first, torch.rand(8, generator=Sampler(Decoding(1, seed=8)).generator(0)))


def test_what_is_no_number_is_refused():
    with pytest.raises(NonFinite, match="the model's output is not a number"):
        Sampler(Decoding(1)).choose(torch.tensor([[0.0, float("nan")]]), [])
