"""Packed attention against one dense mask written out: both ways, every argument, and what is refused."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_config
from torch import Tensor, nn
from transformers.models.gemma2 import modeling_gemma2

from slideformer.errors import UnsupportedModel
from slideformer.kernels import varlen_attention
from slideformer.models import packed_attention as packed
from slideformer.models.architecture import Decoder
from slideformer.models.packed_attention import Documents, attending

ROWS, WIDTH, HEADS, KV_HEADS, HEAD_DIM = 2, 12, 4, 2, 8
LENGTHS = (5, 7, 3, 1, 6, 2)  # of two rows of 12
SCALE, SOFT_CAP = 0.3, 2.0


class Attention(nn.Module):
    is_causal = True
    num_key_value_groups = HEADS // KV_HEADS
    head_dim = HEAD_DIM


class WithSoftCap(Attention):
    """Its module's eager attention knows soft-caps."""


WithSoftCap.__module__ = modeling_gemma2.__name__


def documents() -> Documents:
    positions = torch.cat([torch.arange(n) for n in LENGTHS]).view(ROWS, WIDTH)
    return Documents(positions, torch.tensor([0, *LENGTHS]).cumsum(0), LENGTHS)


QueryKeyValue = tuple[Tensor, Tensor, Tensor]


def tensors(dtype: torch.dtype = torch.float32) -> QueryKeyValue:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(ROWS, n, WIDTH, HEAD_DIM, dtype=dtype, requires_grad=True) for n in (HEADS, KV_HEADS, KV_HEADS)
    )
    return query, key, value


def dense(given: QueryKeyValue, window: int | None, soft_cap: float | None) -> Tensor:
    """[b, t, heads, d], with one mask over all pairs of tokens of all rows."""
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1).transpose(0, 1).float() for tensor in given)
    k, v = (tensor.repeat_interleave(HEADS // KV_HEADS, 0) for tensor in (k, v))
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    back = torch.arange(len(document))[:, None] - torch.arange(len(document))
    visible = (document[:, None] == document) & (back >= 0) & (back < (window or len(document)))
    scores = q @ k.mT * SCALE
    scores = soft_cap * torch.tanh(scores / soft_cap) if soft_cap else scores
    y = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
    return y.transpose(0, 1).view(ROWS, WIDTH, HEADS, HEAD_DIM)


def packed_output(base: str, given: QueryKeyValue, module: nn.Module | None = None, **arguments: Any) -> Tensor:
    with attending(documents()):
        return packed.packed_attention(base, module or Attention(), *given, None, scaling=SCALE, **arguments)[0]


def assert_equal_with_gradients(ours: Tensor, expected: Tensor, given: QueryKeyValue, tolerance: float) -> None:
    torch.testing.assert_close(ours.float(), expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(expected)
    one, other = (torch.autograd.grad((y.float() * weights).sum(), given) for y in (ours, expected))
    for gradient, of_dense in zip(one, other, strict=True):
        torch.testing.assert_close(gradient, of_dense, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [None, 1, 3, 6, 7, 100])
@pytest.mark.parametrize(("base", "soft_cap"), [("sdpa", None), ("eager", None), ("eager", SOFT_CAP)])
def test_one_by_one(base: str, soft_cap: float | None, window: int | None):
    given = tensors()
    ours = packed_output(base, given, WithSoftCap(), sliding_window=window, softcap=soft_cap)
    assert ours.shape == (ROWS, WIDTH, HEADS, HEAD_DIM)
    assert_equal_with_gradients(ours, dense(given, window, soft_cap), given, 1e-5)


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A stand-in for PyTorch's kernel, by what its documentation says of its arguments; records them."""
    calls: list[dict[str, Any]] = []

    def varlen_attn(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, k_starts: Tensor, most: int, k_most: int, **rest):
        calls.append({"most": most, **rest})
        assert starts is k_starts and starts.dtype == torch.int32 and most == k_most
        left, right = rest["window_size"]
        assert right == 0
        outputs = []
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            qs, ks, vs = (tensor[start:stop].transpose(0, 1).float() for tensor in (q, k, v))
            ks, vs = (tensor.repeat_interleave(qs.shape[0] // ks.shape[0], 0) for tensor in (ks, vs))
            visible = torch.ones(stop - start, stop - start).tril()
            visible = visible.triu(-left) if left >= 0 else visible
            scores = (qs @ ks.mT * rest["scale"]).masked_fill(visible == 0, float("-inf"))
            outputs.append((scores.softmax(-1) @ vs).transpose(0, 1).to(q.dtype))
        return torch.cat(outputs)

    monkeypatch.setattr(varlen_attention, "varlen_attn", varlen_attn)
    monkeypatch.setattr(varlen_attention, "_widest_head", lambda device: 256)
    varlen_attention.agrees_with_reference.cache_clear()
    assert varlen_attention.agrees_with_reference(torch.device("cpu"), torch.bfloat16)
    calls.clear()
    yield calls
    varlen_attention.agrees_with_reference.cache_clear()


@pytest.mark.parametrize("window", [None, 1, 3, 6, 7, 100])
def test_in_one_kernel(kernel_calls: list[dict[str, Any]], window: int | None):
    given = tensors(torch.bfloat16)
    ours = packed_output("sdpa", given, sliding_window=window, position_ids=torch.zeros(1))
    assert len(kernel_calls) == 1 and kernel_calls[0]["most"] == max(LENGTHS)
    assert_equal_with_gradients(ours, dense(given, window, None), given, 2e-2)


def test_values_narrower_than_keys(kernel_calls: list[dict[str, Any]]):
    """As in multi-head latent attention."""
    query, key, value = tensors(torch.bfloat16)
    narrow = value[..., :4].detach().requires_grad_()
    ours = packed_output("sdpa", (query, key, narrow))
    assert len(kernel_calls) == 1 and ours.shape[-1] == 4
    zeros = torch.zeros_like(value[..., 4:])
    expected = dense((query, key, torch.cat([narrow, zeros], dim=-1)), None, None)[..., :4]
    assert_equal_with_gradients(ours, expected, (query, key, narrow), 2e-2)


@pytest.mark.parametrize(
    ("base", "dtype", "arguments"),
    [
        ("sdpa", torch.float32, {}),
        ("eager", torch.bfloat16, {}),
        ("sdpa", torch.bfloat16, {"dropout": 0.5}),
        ("sdpa", torch.bfloat16, {"s_aux": torch.zeros(HEADS)}),
    ],
)
def test_what_the_kernel_does_not_compute_is_left_to_the_base(
    kernel_calls: list[dict[str, Any]], base: str, dtype: torch.dtype, arguments: dict[str, Any]
):
    packed_output(base, tensors(dtype), WithSoftCap(), **arguments)
    assert kernel_calls == []


def test_without_documents_each_row_is_one():
    given = tensors()
    ours = packed.packed_attention("sdpa", Attention(), *given, None, scaling=SCALE)[0]
    rows = Documents(torch.arange(WIDTH).expand(ROWS, WIDTH), torch.tensor([0, WIDTH, 2 * WIDTH]), (WIDTH, WIDTH))
    with attending(rows):
        same = packed.packed_attention("sdpa", Attention(), *given, None, scaling=SCALE)[0]
    assert torch.equal(ours, same)


def test_documents_that_do_not_fill_the_rows():
    with pytest.raises(ValueError, match="documents of 24 tokens in 1 rows of 12"):
        query, key, value = tensors()
        packed_output("sdpa", (query[:1], key[:1], value[:1]))


def test_other_kinds_of_attention_are_refused():
    query, key, value = tensors()
    mask = torch.zeros(ROWS, 1, WIDTH, WIDTH)

    def refusal(key: Tensor, mask: Tensor | None, module: nn.Module, **arguments: Any) -> str:
        with pytest.raises(UnsupportedModel) as caught:
            packed.packed_attention("sdpa", module, query, key, value, mask, **arguments)
        return caught.value.message

    assert "a mask of its own" in refusal(key, mask, Attention())
    assert "tokens other than its own" in refusal(key[:, :, :5], None, Attention())
    assert "looks at later tokens" in refusal(key, None, Attention(), is_causal=False)
    bidirectional = Attention()
    bidirectional.is_causal = False
    assert "looks at later tokens" in refusal(key, None, bidirectional)
    assert "a bias for each pair" in refusal(key, None, Attention(), position_bias=mask)
    with pytest.raises(UnsupportedModel, match="no eager_attention_forward"):
        packed_output("eager", tensors(), nn.Linear(1, 1))


# ---- a model


def test_the_models_own_configuration_is_left_alone():
    config = tiny_config("llama")
    decoder = Decoder(config, torch.device("cpu"), packed=True)
    assert decoder.model.config._attn_implementation == "slideformer_packed_sdpa"
    assert config._attn_implementation != "slideformer_packed_sdpa"
    eager = Decoder(config, torch.device("cpu"), attention="eager", packed=True)
    assert eager.model.config._attn_implementation == "slideformer_packed_eager"


def test_models_without_position_ids_are_refused():
    from transformers import BloomConfig

    config = BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2)
    with pytest.raises(UnsupportedModel, match="BloomForCausalLM takes no position_ids"):
        Decoder(config, torch.device("cpu"), packed=True)


def test_attention_that_cannot_be_taken_apart_is_refused():
    with pytest.raises(UnsupportedModel, match="attn_implementation flex_attention") as caught:
        packed.use_packed_attention(model_with_attention("flex_attention"))
    assert "attn_implementation: null" in caught.value.hint


def model_with_attention(name: str) -> Any:
    class Model:
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(_attn_implementation=name))

        def forward(self, position_ids: Tensor) -> None: ...

    return Model()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_no_mask_reaches_a_block(family: str):
    decoder = Decoder(tiny_config(family), torch.device("cpu"), packed=True)
    ids = torch.zeros(ROWS, WIDTH, dtype=torch.int64)
    shell = {name: torch.zeros(shape) for name, shape in decoder.shell_shapes.items()}
    inputs = decoder.enter(ids, torch.zeros(1, decoder.embedding_width), ids, shell, 0, documents())
    largest = WIDTH * WIDTH  # of a mask, even of one row
    tensors = [v for call in inputs.calls for v in [*call.args, *call.kwargs.values()] if isinstance(v, Tensor)]
    assert not [tensor for tensor in tensors if tensor.shape[-2:] == (WIDTH, WIDTH) or tensor.numel() > largest * 8]


def test_an_unpacked_decoder_takes_no_packed_rows():
    decoder = Decoder(tiny_config("llama"), torch.device("cpu"))
    ids = torch.zeros(ROWS, WIDTH, dtype=torch.int64)
    with pytest.raises(ValueError, match="without packed=True"):
        decoder.enter(ids, torch.zeros(1, 64), ids, {}, 0, documents())
