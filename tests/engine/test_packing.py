"""Training on packed rows is training on the same documents one a row: loss, every gradient, evaluation, diagnosis."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from tiny_runs import (
    SIZES,
    Subject,
    as_int32,
    differences,
    hyper_at,
    make_records,
    mean_loss,
    same_bits,
    states_of,
    tiny_engine,
)

from slideformer.data.batches import Batch, collate, collate_packed
from slideformer.data.examples import Example
from slideformer.engine.engine import Engine
from slideformer.engine.measure import measure_work
from slideformer.models.architecture import Decoder
from slideformer.plan.sizes import Sizes
from slideformer.schedule_fuzzer import fuzzed_lanes

ROWS = [[0, 1, 2], [3, 4], [5], [6, 7, 8, 9]]
EXAMPLES = [Example(i, *as_int32(record)) for i, record in enumerate(make_records(10, lengths=(5, 22)))]
PACKED = collate_packed([[EXAMPLES[i] for i in row] for row in ROWS], pad_id=0)
PADDED = collate(EXAMPLES, pad_id=0)
BASE = replace(SIZES, max_length=max(PACKED.lengths))
PLACEMENTS: dict[str, dict[str, int]] = {
    "two micro-batches": {},
    "one": {"micro_batch_size": 4, "micro_batches": 1},
    "four, kept": {"micro_batch_size": 1, "micro_batches": 4, "kept": 3},
    "boundaries in host memory": {"host_boundaries": 3},
}


@cache
def tiny(family: str) -> Subject:
    """Packed; sliding windows (16) are shorter than some documents, and rows longer than none."""
    model = tiny_model(family, **({"sliding_window": 8} if family in ("mistral", "gemma2") else {}))
    return Subject(model, Decoder(model.config, torch.device("cpu"), packed=True))


@cache
def plain(family: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of plain PyTorch on padded rows."""
    model = tiny(family).model
    loss = mean_loss(model, PADDED)
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return float(loss.detach()), {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


def gradients_of(engine: Engine) -> dict[str, torch.Tensor]:
    """After one step: the first moment is (1 - beta1) times the gradient."""
    engine.drain()
    found = {}
    for (unit, names), state in zip(engine.parameter_groups().items(), engine.states.values(), strict=True):
        with state.opened(change=False) as whole:
            views = whole.layout.views(whole.exp_avg)
        prefix = f"{unit}." if unit in engine.decoder.block_names else ""
        found.update({name: views[name.removeprefix(prefix)] / (1 - hyper_at(1).beta1) for name in names})
    return found


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_unpacked_training(family: str, placement: str):
    loss, gradients = plain(family)
    with tiny_engine(tiny(family), replace(BASE, **PLACEMENTS[placement])) as engine:
        result = engine.train_step(PACKED, hyper_at(1))
        assert result.loss == pytest.approx(loss, rel=1e-6)
        ours = gradients_of(engine)
    assert gradients.keys() <= ours.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_engine_takes_padded_rows(family: str):
    """Evaluation on data that is not packed, with the engine that trains packed."""
    with tiny_engine(tiny(family), replace(BASE, micro_batch_size=5)) as engine:
        assert engine.evaluate([PADDED]).loss == pytest.approx(plain(family)[0], rel=1e-6)
        assert engine.evaluate([PACKED]).loss == pytest.approx(plain(family)[0], rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_does_not_see_the_one_before_it(family: str):
    """Canary: after every block, a document's hidden states do not depend on any token of its neighbours."""
    of = tiny(family)
    weights = dict(of.model.named_parameters())
    other = PACKED.input_ids.clone()
    start, stop = PACKED.documents[0][0], sum(PACKED.documents[0][:2])  # pyright: ignore[reportOptionalSubscript]
    other[0, :start], other[0, stop:] = 7, 8
    states = [hidden_states(of, weights, ids) for ids in (PACKED.input_ids, other)]
    for x, y in zip(*states, strict=True):
        torch.testing.assert_close(x[0, start:stop], y[0, start:stop], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(x[0, :start], y[0, :start], rtol=1e-3, atol=1e-3)


def hidden_states(of: Subject, weights: dict[str, torch.Tensor], ids: torch.Tensor) -> list[torch.Tensor]:
    from slideformer.engine.send_batches import documents_on

    decoder = of.decoder
    shell = {name: weights[name] for name in decoder.shell_shapes}
    documents = documents_on(PACKED, torch.device("cpu"))
    with torch.no_grad():
        inputs = decoder.enter(ids, weights[decoder.embedding_name], ids, shell, 0, documents)
        states = [inputs.hidden]
        for i, name in enumerate(decoder.block_names):
            own = {parameter: weights[f"{name}.{parameter}"] for parameter in decoder.block_shapes(i)}
            states.append(decoder.block(i, own, states[-1], inputs, seed=0))
    return states


def train(lanes: Any = None, sizes: Sizes = BASE) -> tuple[list[float], Any]:
    with tiny_engine(tiny("mistral"), sizes, lanes=lanes) as engine:
        losses = [engine.train_step(PACKED, hyper_at(k + 1), 0.5).loss for k in range(2)]
        return losses, states_of(engine)


def test_timing_does_not_change_a_bit():
    sizes = replace(BASE, gradient_slots=3)
    losses, states = train(sizes=sizes)
    for seed in range(6):
        fuzzed, theirs = train(fuzzed_lanes(seed)[0], sizes)
        assert fuzzed == losses and differences(states, theirs) == []


def test_padding_is_not_read():
    with tiny_engine(tiny("llama"), BASE) as engine:
        loss = engine.evaluate([PACKED]).loss
        ids = PACKED.input_ids.clone()
        for row, length in zip(ids, PACKED.lengths, strict=True):
            row[length:] = 99
        assert engine.evaluate([replace(PACKED, input_ids=ids)]).loss == pytest.approx(loss, rel=1e-6)


def test_a_layer_that_is_not_finite_is_found_in_packed_rows():
    with tiny_engine(tiny("llama"), BASE) as engine:
        assert "every block's output is finite" in engine.find_non_finite(PACKED)
        with engine.states["model.layers.1"].opened(change=True) as state:
            state.hi[:] = float("nan")
        assert "model.layers.1" in engine.find_non_finite(PACKED)


def test_tokens_leave_padding_out():
    assert PACKED.tokens == PADDED.tokens == sum(len(example.input_ids) for example in EXAMPLES)
    assert PACKED.trained_tokens == PADDED.trained_tokens


def test_rows_longer_than_the_table_of_positions():
    """Positions restart, so only documents have to be shorter than it; padding too is given none beyond."""
    model = tiny_model("gpt2", n_positions=24)
    of = Subject(model, Decoder(model.config, torch.device("cpu"), packed=True))
    batch = collate_packed([EXAMPLES[:6], EXAMPLES[6:7]], pad_id=0)
    assert max(batch.lengths) > 24 and max(batch.lengths) - min(batch.lengths) > 24
    with tiny_engine(of, Sizes(2, 2, 1, max(batch.lengths), 2, 0, head_chunk=13)) as engine:
        assert engine.evaluate([batch]).loss == pytest.approx(
            float(mean_loss(model, collate(EXAMPLES[:7], 0)).detach()), rel=1e-6
        )
    length = max(batch.lengths)
    assert measure_work(of.decoder, length, torch.float32, [(20, 20), (9,) * 6]).inputs_bytes >= 0


def test_micro_batches_do_not_change_the_documents():
    parts = PACKED.split(1)
    assert [part.documents for part in parts] == [(row,) for row in PACKED.documents or ()]
    assert all(isinstance(part, Batch) and same_bits(part.places()[0], PACKED.places()[0][k : k + 1, : part.lengths[0]])
               for k, part in enumerate(parts))  # fmt: skip
