"""The check before the first step: it passes for every family, and notices an engine that computes anything else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_config
from torch import Tensor
from transformers import AutoConfig

from slideformer.data.batches import Batch
from slideformer.engine import compute
from slideformer.engine.parity import TOLERANCE, check_parity
from slideformer.errors import UnsupportedModel
from slideformer.memory import embedding
from slideformer.memory.gradients import Accumulator
from slideformer.models import packed_attention
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import LayerAdam


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_as_in_plain_pytorch(family: str):
    parity = check_parity(tiny_config(family))
    assert parity.exact and parity.parameters > 10_000
    assert parity.loss_error < TOLERANCE / 10 and parity.weight_error < TOLERANCE / 10
    assert str(parity).startswith("parity: a 0.") and str(parity).count("\n") == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_packed_as_unpacked(family: str):
    parity = check_parity(tiny_config(family), packed=True)
    assert parity.exact and parity.rows == "packed" and "trains packed as in plain PyTorch" in str(parity)


def test_sinks_are_kept_where_documents_are_attended_one_by_one():
    config = AutoConfig.for_model("gpt_oss", num_hidden_layers=4, num_local_experts=4, sliding_window=16)
    assert check_parity(config, packed=True).exact


def test_a_window_that_is_not_handed_to_attention_is_refused(monkeypatch: pytest.MonkeyPatch):
    """A model whose masks alone knew of the window would train with full attention."""
    real = packed_attention._one_by_one
    without = lambda base, module, tensors, lengths, window, kwargs: real(base, module, tensors, lengths, None, kwargs)  # noqa: E731
    monkeypatch.setattr(packed_attention, "_one_by_one", without)
    with pytest.raises(UnsupportedModel, match="does not train packed here") as caught:
        check_parity(tiny_config("mistral"), packed=True)
    assert "packing: false" in caught.value.hint


def test_positions_that_go_on_are_refused(monkeypatch: pytest.MonkeyPatch):
    real = Batch.places
    positions = lambda batch: torch.arange(batch.input_ids.shape[1]).expand(batch.input_ids.shape).contiguous()  # noqa: E731
    monkeypatch.setattr(Batch, "places", lambda batch: (positions(batch), real(batch)[1]))
    with pytest.raises(UnsupportedModel, match="does not train packed here"):
        check_parity(tiny_config("gpt2"), packed=True)


def test_dropout_is_drawn_alike_and_the_random_state_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    config = tiny_config("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    assert check_parity(config).exact
    assert torch.equal(torch.rand(2), expected) and config.resid_pdrop == 0.5


# ---- engines that are wrong


def without_decay(patch: pytest.MonkeyPatch) -> None:
    real = LayerAdam.step_spans
    patch.setattr(
        LayerAdam,
        "step_spans",
        lambda self, spans, grad, hyper: real(self, spans, grad, replace(hyper, weight_decay=0.0)),
    )


def one_micro_batch_lost(patch: pytest.MonkeyPatch) -> None:
    real = Accumulator.add

    def add(self: Accumulator, gradients: Any) -> None:
        if self._first or len(gradients) < 5:
            real(self, gradients)

    patch.setattr(Accumulator, "add", add)


def a_block_skipped(patch: pytest.MonkeyPatch) -> None:
    real = Decoder.block
    patch.setattr(
        Decoder, "block", lambda self, i, weights, x, *rest: x if i == 1 else real(self, i, weights, x, *rest)
    )


def masks_of_another_layer(patch: pytest.MonkeyPatch) -> None:
    real = Decoder.block

    def block(self: Decoder, i: int, weights: Any, x: Tensor, inputs: Any, seed: int, sides: Any) -> Tensor:
        return real(self, i, weights, x, replace(inputs, calls=[*inputs.calls[1:], inputs.calls[0]]), seed, sides)

    patch.setattr(Decoder, "block", block)


def a_slightly_wrong_gradient(patch: pytest.MonkeyPatch) -> None:
    real = compute.block_backward
    patch.setattr(compute, "block_backward", lambda *args: real(*args) * 1.001)  # pyright: ignore[reportOptionalOperand]


def head_and_embedding_gradients_that_do_not_meet(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(embedding, "take_rows", lambda table, rows, out: out.zero_())


SABOTAGE = {
    "llama": [without_decay, one_micro_batch_lost, a_block_skipped, a_slightly_wrong_gradient],
    "gemma2": [masks_of_another_layer],
    "qwen3": [head_and_embedding_gradients_that_do_not_meet],
}


@pytest.mark.parametrize(
    ("family", "sabotage"), [(family, sabotage) for family, all_ in SABOTAGE.items() for sabotage in all_]
)
def test_a_wrong_engine_is_refused(
    monkeypatch: pytest.MonkeyPatch, family: str, sabotage: Callable[[pytest.MonkeyPatch], None]
):
    config = tiny_config(family)
    assert check_parity(config).exact
    sabotage(monkeypatch)
    with pytest.raises(UnsupportedModel, match="differ") as caught:
        check_parity(config)
    assert "report its config.json" in caught.value.hint
