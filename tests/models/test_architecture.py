"""A model taken apart computes what the model computes; what cannot be taken apart is refused with the reason."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, VOCAB, tiny_config, tiny_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from slideformer.errors import UnsupportedModel
from slideformer.models import architecture
from slideformer.models.architecture import Decoder
from slideformer.models.head_matmul import HeadMatmul
from slideformer.models.search import block_lists

CPU = torch.device("cpu")
IDS = torch.randint(3, VOCAB, (2, 20), generator=torch.Generator().manual_seed(0))


class Parts:
    """A plain model's weights, as a decoder's functions take them."""

    def __init__(self, model: Any):
        self.decoder = Decoder(model.config, CPU)
        self.weights = {name: value.detach() for name, value in model.named_parameters()}

    def block(self, i: int) -> dict[str, Tensor]:
        prefix = self.decoder.block_names[i] + "."
        return {name: self.weights[prefix + name] for name in self.decoder.block_shapes(i)}

    @property
    def shell(self) -> dict[str, Tensor]:
        return {name: self.weights[name] for name in self.decoder.shell_shapes}

    def hidden(self, ids: Tensor) -> Tensor:
        """What leaves the last block."""
        rows, row_of = torch.unique(ids, return_inverse=True)
        table = self.weights[self.decoder.embedding_name]
        inputs = self.decoder.enter(ids, table[rows], row_of, self.shell, seed=0)
        x = inputs.hidden
        for i in range(self.decoder.depth):
            x = self.decoder.block(i, self.block(i), x, inputs, seed=i + 1)
        return x

    def logits(self, hidden: Tensor, head_grad: Tensor | None = None) -> Tensor:
        """[c, vocabulary] of hidden states [c, hidden]."""
        head = self.weights[self.decoder.head_name]
        return self.decoder.tail.logits(hidden.unsqueeze(1), head, head_grad, self.shell).squeeze(1)


def plain_hidden_and_logits(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of the model itself: what leaves its last block, and its logits."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    _, blocks = block_lists(model)[0]
    blocks[-1].register_forward_hook(catch)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    return caught[0], logits


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_compute_what_the_model_does_bit_for_bit(family: str):
    model = tiny_model(family)
    parts = Parts(model)
    hidden, logits = plain_hidden_and_logits(model, IDS)
    with torch.no_grad():
        assert torch.equal(parts.hidden(IDS), hidden)
        ours = parts.logits(hidden.flatten(0, 1)).view(logits.shape)
    # One token a sequence is another shape to the matrix product, whose sums may then be in another order.
    torch.testing.assert_close(ours, logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_place(family: str):
    model = tiny_model(family)
    decoder = Decoder(model.config, CPU)
    names = [decoder.embedding_name, *decoder.shell_shapes]
    names += [] if decoder.tied else [decoder.head_name]
    names += [f"{block}.{name}" for i, block in enumerate(decoder.block_names) for name in decoder.block_shapes(i)]
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert sorted(names) == sorted(expected) and decoder.parameter_shapes == expected
    assert decoder.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert decoder.depth == model.config.num_hidden_layers and decoder.hidden == 64
    assert set(decoder.undecayed) == set(expected) - set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]


def test_nothing_of_the_model_is_allocated():
    decoder = Decoder(tiny_config("llama"), CPU)
    assert {p.device.type for block in decoder.blocks for p in block.parameters()} == {"meta"}
    assert {p.device.type for p in decoder.model.parameters()} == {"meta"}
    assert {b.device.type for b in decoder.model.buffers()} == {"cpu"}


def test_opt_projects_between_embedding_and_blocks():
    model = tiny_model("opt", word_embed_proj_dim=32, do_layer_norm_before=False)
    parts = Parts(model)
    assert (parts.decoder.embedding_width, parts.decoder.hidden, parts.decoder.head_shape) == (32, 64, (VOCAB, 32))
    assert any("project_in" in name for name in parts.decoder.shell_shapes)
    hidden, logits = plain_hidden_and_logits(model, IDS)
    with torch.no_grad():
        assert torch.equal(parts.hidden(IDS), hidden)
        ours = parts.logits(hidden.flatten(0, 1)).view(logits.shape)
    torch.testing.assert_close(ours, logits, rtol=1e-6, atol=1e-6)


# ---- gradients


def test_the_heads_gradient_is_added_in_fp32():
    parts = Parts(tiny_model("llama"))
    hidden = torch.randn(7, 64, requires_grad=True)
    d_logits = torch.randn(7, VOCAB)
    grad = torch.ones(VOCAB, 64)
    (d_hidden,) = torch.autograd.grad(parts.logits(hidden, grad), hidden, d_logits)

    head = parts.weights["lm_head.weight"].clone().requires_grad_()
    parts.weights["lm_head.weight"] = head
    expected = torch.autograd.grad(parts.logits(hidden), [hidden, head], d_logits)
    torch.testing.assert_close(d_hidden, expected[0])
    torch.testing.assert_close(grad, 1 + expected[1])


def test_the_heads_gradient_of_bf16_is_not_rounded_to_bf16():
    hidden, weight = torch.randn(64, 8).bfloat16().requires_grad_(), torch.randn(5, 8).bfloat16()
    d_logits, grad = torch.randn(64, 5).bfloat16(), torch.zeros(5, 8)
    torch.autograd.grad(HeadMatmul.apply(hidden, weight, grad), hidden, d_logits)
    exact = d_logits.double().T @ hidden.double()
    torch.testing.assert_close(grad.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_head_is_let_go_once_its_graph_is():
    parts = Parts(tiny_model("llama"))
    parts.weights["lm_head.weight"] = parts.weights["lm_head.weight"].clone()
    hidden, grad = torch.randn(7, 64, requires_grad=True), torch.zeros(VOCAB, 64)
    watched = [weakref.ref(parts.weights["lm_head.weight"]), weakref.ref(grad)]
    torch.autograd.grad(parts.logits(hidden, grad).sum(), hidden)
    del parts.weights["lm_head.weight"], grad
    assert [ref() for ref in watched] == [None, None]


# ---- dropout


def block_gradient(decoder: Decoder, parts: Parts, seed: int) -> tuple[Tensor, Tensor]:
    """A block's output without a graph, and the input's gradient from a recomputed forward with the same seed."""
    rows, row_of = torch.unique(IDS, return_inverse=True)
    with torch.no_grad():
        inputs = decoder.enter(IDS, parts.weights[decoder.embedding_name][rows], row_of, parts.shell, seed=0)
        y = decoder.block(1, parts.block(1), inputs.hidden, inputs, seed)
    torch.rand(100)  # what happens in between
    x = inputs.hidden.detach().requires_grad_()
    recomputed = decoder.block(1, parts.block(1), x, inputs, seed)
    assert torch.equal(recomputed, y)
    (dx,) = torch.autograd.grad(recomputed.square().sum(), x)
    return y, dx


DROPOUT: dict[str, dict[str, Any]] = {
    "gpt2": {"resid_pdrop": 0.2, "attn_pdrop": 0.2, "embd_pdrop": 0.2},
    "opt": {"dropout": 0.2, "attention_dropout": 0.2},
    "llama": {"attention_dropout": 0.2},
}


@pytest.mark.parametrize("family", DROPOUT)
def test_a_recomputed_block_drops_what_the_first_did(family: str):
    parts = Parts(tiny_model(family, **DROPOUT[family]))
    decoder = parts.decoder
    assert decoder.draws_at_random
    (one, dx), (again, dx_again), (other, _) = (block_gradient(decoder, parts, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and torch.equal(dx, dx_again) and not torch.equal(one, other)
    with decoder.without_dropout():
        still, _ = block_gradient(decoder, parts, 1)
        assert torch.equal(still, block_gradient(decoder, parts, 2)[0])
    assert torch.equal(block_gradient(decoder, parts, 1)[0], one)  # and it is back


def test_embedding_dropout_follows_its_seed():
    parts = Parts(tiny_model("gpt2", **DROPOUT["gpt2"]))
    rows, row_of = torch.unique(IDS, return_inverse=True)

    def enter(seed: int) -> Tensor:
        table = parts.weights[parts.decoder.embedding_name]
        return parts.decoder.enter(IDS, table[rows], row_of, parts.shell, seed).hidden

    assert torch.equal(enter(3), enter(3)) and not torch.equal(enter(3), enter(4))


def test_a_model_without_dropout_leaves_the_random_state_alone():
    parts = Parts(tiny_model("llama"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    parts.hidden(IDS)
    assert torch.equal(torch.rand(3), expected)


# ---- refusals


def refusal(config: Any) -> UnsupportedModel:
    with pytest.raises(UnsupportedModel) as caught:
        Decoder(config, CPU)
    assert caught.value.hint or "fails over stand-ins" in caught.value.message
    return caught.value


def test_an_encoder_decoder_is_refused():
    from transformers import T5Config

    assert "t5 is an encoder-decoder model" in str(refusal(T5Config(d_model=16, num_layers=1, num_heads=2)))


def test_a_router_loss_is_refused():
    error = refusal(tiny_config("qwen3_moe", output_router_logits=True))
    assert "router's auxiliary loss" in error.message and "set output_router_logits to false" in error.hint


def test_layers_dropped_at_random_are_refused():
    assert "layerdrop skips blocks at random" in str(refusal(tiny_config("opt", layerdrop=0.1)))


def with_forward(monkeypatch: pytest.MonkeyPatch, forward: Callable[..., Any]) -> LlamaConfig:
    """A Llama whose loop over its blocks is another."""
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaModel.forward", forward)
    return tiny_config("llama")


def run_blocks(model: Any, input_ids: Tensor, between: Callable[[Tensor], Tensor], blocks: Any) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    x = model.embed_tokens(input_ids)
    for block in blocks:
        x = between(block(x))
    return BaseModelOutputWithPast(last_hidden_state=x)


def test_computing_between_blocks_is_refused(monkeypatch: pytest.MonkeyPatch):
    config = with_forward(
        monkeypatch, lambda self, input_ids, **_: run_blocks(self, input_ids, lambda x: x * 2, self.layers)
    )
    error = refusal(config)
    assert (
        "computes on the hidden states between two blocks" in error.message
        and "follow each other directly" in error.hint
    )


@pytest.mark.parametrize(
    ("called", "words"),
    [
        ([], "called 0 of its 3 blocks"),
        ([0, 1], "called 2 of its 3 blocks"),
        ([0, 0, 1], "calls block 0 in place 1"),
        ([2, 1, 0], "calls block 2 in place 0"),
    ],
)
def test_skipped_repeated_or_reordered_blocks_are_refused(
    monkeypatch: pytest.MonkeyPatch, called: list[int], words: str
):
    def forward(self: Any, input_ids: Tensor, **_: Any) -> Any:
        return run_blocks(self, input_ids, lambda x: x, [self.layers[i] for i in called])

    error = refusal(with_forward(monkeypatch, forward))
    assert words in error.message and "skip, repeat or reorder blocks" in error.hint


def test_a_model_without_a_list_of_blocks_is_refused():
    with pytest.raises(UnsupportedModel, match="Linear has no list of blocks"):
        block_lists(nn.Linear(2, 2))


def test_of_nested_lists_the_outermost_is_the_blocks():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    model = nn.Sequential()
    model.add_module("layers", nn.ModuleList([Block()]))
    assert block_lists(model)[0][0] == "layers"


def test_an_embedding_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda self: nn.Identity())
    error = refusal(tiny_config("llama"))
    assert "has a Embedding embedding and a Identity head" in error.message


def test_customizing_sees_the_whole_model_before_it_is_taken_apart():
    seen: list[str] = []
    architecture.Decoder(
        tiny_config("llama"), CPU, customize=lambda model: seen.append(type(model.model.layers[0]).__name__)
    )
    assert seen == ["LlamaDecoderLayer"]
