"""The variable-length kernel is used only where it was seen to compute what its reference does."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from slideformer.kernels import varlen_attention
from slideformer.kernels.varlen_attention import agrees_with_reference, varlen_attention_reference

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seen_anew() -> Iterator[None]:
    agrees_with_reference.cache_clear()
    yield
    agrees_with_reference.cache_clear()


def kernel(wrong_window: bool = False) -> Any:
    """As `varlen_attn` is called, but computed from the formula."""

    def varlen_attn(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *_: Any, **given: Any) -> Tensor:
        lengths = tuple(starts.diff().tolist())
        window = None if given["window_size"][0] < 0 or wrong_window else given["window_size"][0] + 1
        query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
        return varlen_attention_reference(query, key, value, lengths, window, given["scale"])[0].to(q.dtype)

    return varlen_attn


def test_a_kernel_that_computes_the_formula_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel())
    with warnings.catch_warnings(action="error"):
        assert agrees_with_reference(CPU, torch.bfloat16)


def test_a_kernel_that_ignores_the_window_is_not_used_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel(wrong_window=True))
    with pytest.warns(UserWarning, match="from its reference.*attended one by one"):
        assert not agrees_with_reference(CPU, torch.bfloat16)


def test_a_kernel_with_other_arguments_is_not_used_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(varlen_attention, "varlen_attn", lambda q, k, v, a, b, most, k_most, is_causal=False: q)
    with pytest.warns(UserWarning, match="unexpected keyword argument 'scale'"):
        assert not agrees_with_reference(CPU, torch.bfloat16)


def test_there_is_no_kernel_on_the_cpu():
    query = torch.zeros(1, 4, 8, 64, dtype=torch.bfloat16)
    assert not varlen_attention.takes(query, query)


def test_the_first_use_inside_a_block_leaves_nothing_with_the_block(monkeypatch: pytest.MonkeyPatch):
    """A block that is recomputed counts the tensors it saved; the comparison's own must not be among them."""
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel())

    def not_mine(_: Any) -> Any:
        raise AssertionError("a tensor of the comparison was saved with the block's")

    with saved_tensors_hooks(not_mine, not_mine), warnings.catch_warnings(action="error"):
        assert agrees_with_reference(CPU, torch.bfloat16)
