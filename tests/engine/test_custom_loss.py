"""A loss of one's own trains as autograd over whole logits does, whatever the chunks and micro-batches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCAB, tiny_model
from tiny_runs import SIZES, batch_at, differences, hyper_at, make_records, states_of, subject, tiny_engine
from torch import Tensor

from slideformer import TokenChunk
from slideformer.optim.adamw import AdamWStep

RECORDS = make_records(4)
BATCH = batch_at(RECORDS, 4, 0)
B, T = BATCH.input_ids.shape
TEACHER = torch.randn(B, T, VOCAB, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
WEIGHTS = torch.rand(B, T, generator=torch.Generator().manual_seed(2))
EXTRA = {"teacher": TEACHER, "weight": WEIGHTS}


def cross_entropy(chunk: Any) -> Tensor:
    return F.cross_entropy(chunk.logits.float(), chunk.targets, reduction="sum") / chunk.trained_tokens


def weighted_distillation(chunk: Any) -> Tensor:
    """KL to a teacher, token by token, weighted."""
    kl = F.kl_div(chunk.logits.log_softmax(-1), chunk.extra["teacher"], reduction="none", log_target=True).sum(-1)
    return (kl * chunk.extra["weight"]).sum() / chunk.trained_tokens


def with_z_loss(chunk: Any) -> Tensor:
    return cross_entropy(chunk) + 0.1 * chunk.logits.logsumexp(-1).square().sum() / chunk.trained_tokens


def of_hidden_states(chunk: Any) -> Tensor:
    return chunk.hidden.float().square().sum() / chunk.trained_tokens


class WholeBatch:
    """The same attributes over all tokens at once, from a plain model."""

    def __init__(self, model: Any):
        output = model(input_ids=BATCH.input_ids, use_cache=False)
        trained = BATCH.targets != -100
        self.logits, self.targets = output.logits[trained], BATCH.targets[trained]
        self.extra = {name: value[trained] for name, value in EXTRA.items()}
        self.hidden = LAST_HIDDEN[0][trained]
        self.trained_tokens = BATCH.trained_tokens


LAST_HIDDEN: list[Tensor] = []


def plain_step(model: Any, loss_of: Callable[[Any], Tensor], hyper: AdamWStep) -> tuple[float, dict[str, Tensor]]:
    """Loss and weights after one AdamW step in plain PyTorch."""
    LAST_HIDDEN.clear()
    hook = model.model.layers[-1].register_forward_hook(lambda *given: LAST_HIDDEN.append(given[-1]))
    loss = loss_of(WholeBatch(model))
    hook.remove()
    optimizer = torch.optim.AdamW(
        model.parameters(), hyper.learning_rate, (hyper.beta1, hyper.beta2), hyper.epsilon, hyper.weight_decay
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss.backward()
    optimizer.step()
    return float(loss.detach()), {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # qwen3 has a tied head
@pytest.mark.parametrize("loss_of", [cross_entropy, weighted_distillation, with_z_loss, of_hidden_states])
@pytest.mark.parametrize(("micro", "chunk"), [(2, 5), (4, 1000)])
def test_it_equals_autograd_over_the_whole(family: str, loss_of: Callable[[Any], Tensor], micro: int, chunk: int):
    of, hyper = subject(tiny_model(family)), replace(hyper_at(1), weight_decay=0.0)
    sizes = replace(SIZES, micro_batch_size=micro, micro_batches=4 // micro, head_chunk=chunk)
    with tiny_engine(of, sizes) as engine:
        result = engine.train_step(BATCH, hyper, loss=loss_of, extra=EXTRA)
        found = {name: value for _, group in engine.weights(torch.float32) for name, value in group.items()}
        loss = result.loss
    expected_loss, expected = plain_step(tiny_model(family), loss_of, hyper)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_every_token_is_seen_once_and_logits_only_when_read():
    seen: list[int] = []

    def count(chunk: TokenChunk) -> Tensor:
        seen.append(len(chunk.targets))
        assert "logits" not in chunk.__dict__ and chunk.hidden.shape == (len(chunk.targets), 64)
        assert chunk.extra["weight"].shape == (len(chunk.targets),)
        return chunk.hidden.sum() * 0.0

    with tiny_engine(subject(tiny_model("llama"))) as engine:
        engine.train_step(BATCH, hyper_at(1), loss=count, extra=EXTRA)
        engine.drain()
    assert sum(seen) == BATCH.trained_tokens and max(seen) <= SIZES.head_chunk


def test_clipping_applies_to_it():
    sizes, states = replace(SIZES, gradient_slots=3), []
    for limit in (None, 1e9):
        with tiny_engine(subject(tiny_model("llama")), sizes) as engine:
            engine.train_step(BATCH, hyper_at(1), limit, loss=with_z_loss)
            states.append(states_of(engine))
    assert not differences(*states)


@pytest.mark.parametrize(
    ("loss", "extra", "complaint"),
    [
        (lambda chunk: chunk.logits.sum(-1), {}, "scalar tensor"),
        (lambda chunk: 1.0, {}, "scalar tensor"),
        (lambda chunk: torch.ones(()), {}, "depends on"),
        (cross_entropy, {"weight": torch.ones(B)}, r"extra\['weight'\]"),
        (cross_entropy, {"weight": torch.ones(B + 1, T)}, r"extra\['weight'\]"),
    ],
)
def test_what_cannot_be_a_loss_is_refused(loss: Any, extra: dict[str, Tensor], complaint: str):
    with tiny_engine(subject(tiny_model("llama"))) as engine, pytest.raises(ValueError, match=complaint):
        engine.train_step(BATCH, hyper_at(1), loss=loss, extra=extra)
