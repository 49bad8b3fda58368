"""The Triton cross-entropy against float64: awkward vocabularies, extreme logits, and where the gradient lies."""

import math

import pytest
import torch
from torch import Tensor

from slideformer.kernels.cross_entropy import cross_entropy, negative_log_likelihood

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16]
VOCABULARIES = [1, 2, 127, 4096, 4097, 32_000, 151_937]


def exact(logits: Tensor, targets: Tensor, scale: float) -> tuple[float, Tensor]:
    """Loss and gradient in float64."""
    z = logits.detach().double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(z, targets, reduction="sum") * scale
    loss.backward()
    assert z.grad is not None
    return float(loss), z.grad


def check(logits: Tensor, targets: Tensor, scale: float = 0.37) -> None:
    loss, gradient = exact(logits, targets, scale)
    largest = float(logits.double().abs().max()) if logits.numel() else 0.0
    relative = 1e-5 + largest * 2**-22  # a log-sum of that size has no finer steps in fp32
    rounding = 2**-8 if logits.dtype == torch.bfloat16 else 0.0
    ours, our_gradient = cross_entropy(logits.clone(), targets, scale)
    assert ours.dtype == torch.float32 and our_gradient.dtype == logits.dtype
    assert float(ours) == pytest.approx(loss, rel=relative, abs=scale * len(targets) * relative)
    torch.testing.assert_close(our_gradient.double(), gradient, rtol=relative + rounding, atol=scale * 1e-6)


def random_case(rows: int, vocabulary: int, dtype: torch.dtype, size: float = 3.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(vocabulary)
    logits = (torch.randn(rows, vocabulary, device="cuda") * size).to(dtype)
    return logits, torch.randint(vocabulary, (rows,), device="cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("rows", [1, 33])
def test_equals_float64(rows: int, vocabulary: int, dtype: torch.dtype):
    check(*random_case(rows, vocabulary, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [127, 151_937])
def test_the_first_and_the_last_word(vocabulary: int, dtype: torch.dtype):
    logits, _ = random_case(2, vocabulary, dtype)
    check(logits, torch.tensor([0, vocabulary - 1], device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-6, 100.0, 1e4])
def test_flat_and_steep_logits(size: float, dtype: torch.dtype):
    check(*random_case(16, 32_000, dtype, size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_numbers_do_not_overflow(dtype: torch.dtype):
    vocabulary, largest = 5000, float(torch.finfo(dtype).max)
    logits, targets = torch.zeros(3, vocabulary, dtype=dtype, device="cuda"), torch.tensor([7, 8, 9], device="cuda")
    logits[:, 7] = largest
    logits[1, 4999] = -largest
    loss, gradient = cross_entropy(logits[:1].clone(), targets[:1], 1.0)
    assert float(loss) == 0 and bool((gradient == 0).all())  # the target has all the probability
    loss, gradient = cross_entropy(logits[1:2].clone(), targets[1:2], 1.0)
    assert float(loss) == largest
    expected = torch.zeros_like(gradient)
    expected[0, 7], expected[0, 8] = 1, -1
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", [0, 4999])
def test_words_that_cannot_be(place: int, dtype: torch.dtype):
    """Minus infinity, alone and as a whole block of the row."""
    logits, targets = random_case(4, 9000, dtype)
    targets.clamp_(min=5000)
    logits[:, place] = -math.inf
    logits[2, :4999] = -math.inf
    check(logits, targets)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_loss(bad: float):
    logits, targets = random_case(4, 5000, torch.float32)
    logits[2, 4500] = bad
    assert not math.isfinite(float(cross_entropy(logits, targets, 1.0)[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_rows(dtype: torch.dtype):
    logits, targets = random_case(0, 127, dtype)
    loss, gradient = cross_entropy(logits, targets, 1.0)
    assert float(loss) == 0 and gradient.shape == (0, 127)


def test_rows_of_a_wider_table():
    """Rows that do not follow each other in memory, as a vocabulary that was padded leaves them."""
    wide, targets = random_case(5, 1024, torch.float32)
    beyond = wide[:, 1000:].clone()
    targets.clamp_(max=999)
    _, expected = exact(wide[:, :1000], targets, 1.0)
    _, gradient = cross_entropy(wide[:, :1000], targets, 1.0)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(wide[:, 1000:], beyond)


def test_the_gradient_takes_the_memory_of_logits_that_nothing_reads():
    x, weight = (torch.randn(*shape, device="cuda", requires_grad=True) for shape in ((8, 16), (127, 16)))
    targets = torch.randint(127, (8,), device="cuda")
    plain = x @ weight.T + 0.0
    _, gradient = cross_entropy(plain, targets, 1.0)
    assert gradient.data_ptr() == plain.data_ptr()
    capped = torch.tanh(x @ weight.T)  # its backward reads its output
    before = capped.detach().clone()
    _, gradient = cross_entropy(capped, targets, 1.0)
    assert gradient.data_ptr() != capped.data_ptr() and torch.equal(capped, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_loss_alone(dtype: torch.dtype):
    logits, targets = random_case(33, 32_000, dtype)
    loss, _ = exact(logits, targets, 1.0)
    assert float(negative_log_likelihood(logits, targets)) == pytest.approx(loss, rel=1e-5)
