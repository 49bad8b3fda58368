"""Frozen parameters keep their bits, take no state and no gradient; the others train as if PyTorch had frozen them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import SIZES, Subject, batch_at, hyper_at, make_records, mean_loss, parameter_groups, tiny_engine

from slideformer.engine import compute
from slideformer.models.architecture import Decoder
from slideformer.models.freezing import frozen_names

RECORDS = make_records(12)
PATTERNS: dict[str, dict[str, list[str]]] = {
    "attention only": {"trainable": [r"attn"]},
    "no norms": {"frozen": [r"norm|ln_"]},
    "upper half": {"frozen": [r"embed|wte|wpe", r"(layers|h)\.[01]\."]},
    "head and norm": {"trainable": [r"^model\.norm|ln_f|lm_head|embed_tokens|wte"]},
    "one block": {"trainable": [r"(layers|h)\.1\."]},
    "embedding only": {"trainable": [r"embed_tokens|wte"]},
}
FAMILIES = {"llama": {}, "qwen3": {"tie_word_embeddings": True}, "gpt2": {}}


def frozen_subject(family: str, patterns: dict[str, list[str]]) -> Subject:
    model = tiny_model(family, **FAMILIES[family])
    freeze: Callable[[Iterable[str]], frozenset[str]] = partial(frozen_names, **patterns)
    return Subject(model, Decoder(model.config, torch.device("cpu"), freeze=freeze))


def plain_weights(of: Subject, steps: int, max_norm: float | None) -> dict[str, torch.Tensor]:
    model: Any = tiny_model(of.model.config.model_type, **FAMILIES[of.model.config.model_type]).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in of.decoder.frozen)
    hyper = hyper_at(1)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, hyper.weight_decay), hyper.learning_rate, (hyper.beta1, hyper.beta2), hyper.epsilon
    )
    for step in range(steps):
        mean_loss(model, batch_at(RECORDS, 4, step)).backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_rest_trains_as_in_plain_pytorch(family: str, patterns: dict[str, list[str]], max_norm: float | None):
    of = frozen_subject(family, patterns)
    start = dict(of.model.named_parameters())
    sizes = replace(SIZES, gradient_slots=3, host_boundaries=1, kept=1)
    with tiny_engine(of, sizes) as engine:
        for k in range(3):
            engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)
        weights = {name: value for _, group in engine.weights(torch.float32) for name, value in group.items()}
    expected = plain_weights(of, 3, max_norm)
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        if name in of.decoder.frozen:
            assert torch.equal(value, start[name].detach())
        else:
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5, msg=name)
            assert not torch.equal(value, start[name].detach()), name


def test_frozen_parameters_take_no_moments():
    of = frozen_subject("llama", PATTERNS["attention only"])
    with tiny_engine(of, replace(SIZES, gradient_slots=3)) as engine:
        moments = engine.allocator.allocated_bytes["optimizer moments"]
        trained = sum(p.numel() for n, p in of.model.named_parameters() if n not in of.decoder.frozen)
        assert moments == 8 * trained  # these tiny parameters fill their alignment


def test_backward_stops_above_a_frozen_lower_stack(monkeypatch: pytest.MonkeyPatch):
    of = frozen_subject("llama", PATTERNS["upper half"])
    backward, seen = compute.block_backward, []

    def counted(decoder: Decoder, i: int, *rest: Any) -> Any:
        dx = backward(decoder, i, *rest)
        seen.append((i, dx is None))
        return dx

    monkeypatch.setattr(compute, "block_backward", counted)
    monkeypatch.setattr(compute, "enter_backward", lambda *_: pytest.fail("nothing there is trained"))
    with tiny_engine(of) as engine:
        engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))
        engine.drain()
    assert seen == [(2, True)] * 2  # the only trained block, twice for two micro-batches, without an input gradient
