"""The engine as its user sees it: weights in and out, steps, evaluation, failure, the end."""

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from tiny_runs import (
    SIZES,
    Subject,
    batch_at,
    differences,
    hyper_at,
    make_records,
    mean_loss,
    parameter_groups,
    states_of,
    subject,
    tiny_engine,
)

from slideformer.engine.engine import Engine
from slideformer.engine.layouts import layouts
from slideformer.errors import DoesNotFit, EngineFailed, NonFinite, WorkerFailed
from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.optim.adamw import LayerAdam

pytestmark = pytest.mark.timeout(60)

RECORDS = make_records(12)


@cache
def tiny(family: str, **changes: Any) -> Subject:
    return subject(tiny_model(family, **changes))


# ---- weights in and out


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_weights_come_out_again(family: str):
    of = tiny(family)
    with tiny_engine(of) as engine:
        out = {name: value for _, group in engine.weights(torch.float32) for name, value in group.items()}
    expected = dict(of.model.named_parameters())
    assert out.keys() == expected.keys()
    assert all(torch.equal(out[name], expected[name]) for name in out)


def test_of_weights_that_are_loaded_one_unit_is_there_at_a_time():
    of = tiny("llama")
    before: list[weakref.ref[torch.Tensor]] = []

    def groups(names: dict[str, list[str]]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        start = dict(of.model.named_parameters())
        for unit, members in names.items():
            assert [made for made in before if made() is not None] == []
            tensors = {name: start[name].detach().clone() for name in members}
            before[:] = map(weakref.ref, tensors.values())
            yield unit, tensors
            del tensors

    with tiny_engine(of) as engine:
        engine.load(groups(engine.parameter_groups()))


def test_groups_are_in_the_order_of_use():
    groups = layouts(tiny("llama").decoder)
    assert list(groups) == ["embedding", "shell", "model.layers.0", "model.layers.1", "model.layers.2", "head"]
    assert "head" not in layouts(tiny("qwen3").decoder)
    with tiny_engine(tiny("llama")) as engine:
        names = engine.parameter_groups()
    assert names["embedding"] == ["model.embed_tokens.weight"] and names["shell"] == ["model.norm.weight"]
    assert names["model.layers.1"][0] == "model.layers.1.self_attn.q_proj.weight" and names["head"] == [
        "lm_head.weight"
    ]


def test_norms_and_biases_are_not_decayed():
    groups = layouts(tiny("gpt2").decoder)
    undecayed = {name for layout in groups.values() for name, field in layout.fields.items() if not field.decay}
    assert {"ln_1.weight", "attn.c_attn.bias", "transformer.ln_f.weight"} <= undecayed
    assert not any(name.endswith(("c_attn.weight", "wte.weight", "wpe.weight")) for name in undecayed)


# ---- steps


def plain_steps(of: Subject, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same steps by plain PyTorch."""
    model = tiny_model(of.model.config.model_type, **of_changes(of)).train()
    model.load_state_dict(of.model.state_dict())
    hyper = hyper_at(1)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, hyper.weight_decay), hyper.learning_rate, (hyper.beta1, hyper.beta2), hyper.epsilon
    )
    losses = []
    for step in range(steps):
        loss = mean_loss(model, batch_at(RECORDS, 4, step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, dict(model.named_parameters())


def of_changes(of: Subject) -> dict[str, Any]:
    return {key: getattr(of.model.config, key) for key in ("tie_word_embeddings",)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_three_steps_of_every_family_equal_plain_pytorch(family: str, tied: bool):
    of = tiny(family, tie_word_embeddings=tied)
    losses, expected = plain_steps(of, 3)
    with tiny_engine(of) as engine:
        ours = [engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1)).loss for k in range(3)]
        weights = {name: value for _, group in engine.weights(torch.float32) for name, value in group.items()}
    assert ours == pytest.approx(losses, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_a_model_with_no_parameters_around_its_blocks():
    of = tiny_without_shell()
    with tiny_engine(of, replace(SIZES, gradient_slots=3)) as engine:
        assert engine.parameter_groups()["shell"] == []
        first, *_, last = [engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(k + 1), 1.0).loss for k in range(3)]
    assert last < first


@cache
def tiny_without_shell() -> Subject:
    from transformers import OlmoConfig, OlmoForCausalLM

    config = OlmoConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return subject(OlmoForCausalLM(config))


def test_dropout_is_drawn_anew_each_step_and_repeats_with_the_step():
    of = tiny("gpt2", resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3)

    def losses(steps: list[int]) -> list[float]:
        with tiny_engine(of, replace(SIZES, window_depth=3)) as engine:
            still = replace(hyper_at(1), learning_rate=0.0, weight_decay=0.0)
            return [engine.train_step(batch_at(RECORDS, 4, 0), replace(still, step=k)).loss for k in steps]

    one, two = losses([1, 2])
    assert one != two and losses([1, 2]) == [one, two]


def test_dropout_differs_between_micro_batches():
    """Two equal sequences in two micro-batches: with one mask the mean loss would be that of one sequence."""
    of = tiny("gpt2", resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3)
    one, two = batch_at(RECORDS[:1], 1, 0), batch_at(RECORDS[:1] * 2, 2, 0)
    with tiny_engine(of, replace(SIZES, micro_batch_size=1)) as engine:
        assert engine.train_step(one, hyper_at(1)).loss != pytest.approx(
            engine.train_step(two, hyper_at(1)).loss, rel=1e-4
        )


def test_dropout_does_not_depend_on_window_or_tier():
    of = tiny("gpt2", resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3)

    def states(**sizes: int) -> Any:
        with tiny_engine(of, replace(SIZES, **sizes)) as engine:
            for k in range(2):
                engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1))
            return states_of(engine)

    assert differences(states(), states(window_depth=3, host_boundaries=2)) == []


def test_a_smaller_batch_than_planned_is_trained():
    with tiny_engine(tiny("llama")) as engine:
        result = engine.train_step(batch_at(RECORDS[:1], 1, 0), hyper_at(1))
        assert result.trained_tokens == len(RECORDS[0]["labels"]) - 2 and result.loss > 0


def test_a_larger_batch_than_planned_is_refused_and_nothing_is_broken():
    with tiny_engine(tiny("llama")) as engine:
        with pytest.raises(ValueError, match="5 sequences of up to .* built for 4 of up to 24"):
            engine.train_step(batch_at(RECORDS, 5, 0), hyper_at(1))
        with pytest.raises(ValueError, match="2 sequences of up to 30 tokens"):
            engine.evaluate([batch_at(RECORDS, 4, 0), batch_at(make_records(2, lengths=(30, 30)), 2, 0)])
        engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))


def test_clipping_without_room_for_all_gradients_is_refused_instead_of_waiting_for_ever():
    words = "clipping keeps the gradients of 3 blocks at once; the engine has 2 slots"
    with tiny_engine(tiny("llama")) as engine, pytest.raises(ValueError, match=words):
        engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1), max_norm=1.0)


def test_outputs_that_take_more_than_planned_are_refused():
    with tiny_engine(tiny("qwen3"), replace(SIZES, host_outputs=9, host_output_bytes=512)) as engine:
        with pytest.raises(DoesNotFit, match="there is room for 512"):
            engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))
        with pytest.raises(EngineFailed):
            engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))


def test_a_result_is_of_its_own_step_however_late_it_is_read():
    def losses(late: bool) -> list[float]:
        with tiny_engine(tiny("qwen3")) as engine:
            results = []
            for step in range(1, 6):
                results.append(engine.train_step(batch_at(RECORDS, 4, step), hyper_at(step)))
                if not late:
                    _ = results[-1].loss
            return [result.loss for result in results]

    assert losses(late=True) == losses(late=False) and len(set(losses(late=True))) == 5


def test_timings_are_of_this_steps_updates():
    with tiny_engine(tiny("llama")) as engine:
        result = engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))
        engine.drain()
        assert 0 < result.optimizer_seconds < 10


# ---- evaluation


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_evaluation_equals_the_model_and_leaves_no_trace(family: str, max_norm: float | None):
    dropout = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2} if family == "gpt2" else {}
    of, held_out = tiny(family, **dropout), batch_at(make_records(3, seed=9), 3, 0)

    def train(evaluating: bool) -> tuple[list[float], Any]:
        sizes = replace(SIZES, gradient_slots=3, host_boundaries=1)
        with tiny_engine(of, sizes) as engine:
            seen = []
            for k in range(3):
                if evaluating:
                    seen += [engine.evaluate([held_out]).loss, engine.evaluate([held_out]).loss]
                engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)
            return seen, states_of(engine)

    seen, states = train(evaluating=True)
    assert seen[0] == pytest.approx(float(mean_loss(of.model, held_out).detach()), rel=1e-6)
    assert seen[0] == seen[1] and seen[2] == seen[3] != seen[0]
    assert differences(states, train(evaluating=False)[1]) == []


def test_a_failed_evaluation_is_the_end_but_training_mode_is_back(monkeypatch: pytest.MonkeyPatch):
    of = tiny("gpt2", resid_pdrop=0.2)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with tiny_engine(of) as engine:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("slideformer.engine.compute.add_head_loss", fail)
            engine.evaluate([batch_at(RECORDS, 4, 0)])
        assert of.decoder.model.training
        with pytest.raises(EngineFailed):  # the window is not what it was
            engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))


# ---- failure


def failing_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = LayerAdam.step_spans

    def fail(self: LayerAdam, spans: Any, grad: Any, hyper: Any) -> None:
        if hyper.step == step:
            raise OSError("no luck")
        real(self, spans, grad, hyper)

    monkeypatch.setattr(LayerAdam, "step_spans", fail)


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_an_update_that_raises_reaches_the_caller_and_refuses_the_next_step(
    monkeypatch: pytest.MonkeyPatch, max_norm: float | None
):
    failing_at(monkeypatch, step=2)
    with tiny_engine(tiny("llama"), replace(SIZES, gradient_slots=3)) as engine:
        engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1), max_norm)
        with pytest.raises(
            WorkerFailed, match=r"step 2: the update of (model\.layers\.\d|head|shell) failed: OSError: no luck"
        ) as caught:
            engine.train_step(batch_at(RECORDS, 4, 1), hyper_at(2), max_norm)
            engine.drain()
        assert isinstance(caught.value.__cause__, OSError)
        refusals: list[Callable[[], object]] = [
            lambda: engine.train_step(batch_at(RECORDS, 4, 2), hyper_at(3), max_norm),
            engine.drain,
            lambda: engine.evaluate([batch_at(RECORDS, 4, 2)]),
            lambda: dict(engine.weights(torch.float32)),
        ]
        for refused in refusals:
            with pytest.raises(EngineFailed, match=r"an earlier step failed \(WorkerFailed\)") as refusal:
                refused()
            assert refusal.value.__cause__ is caught.value


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_reading_a_result_of_a_failed_update_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, max_norm: float | None
):
    failing_at(monkeypatch, step=1)
    with tiny_engine(tiny("llama"), replace(SIZES, gradient_slots=3)) as engine, pytest.raises(WorkerFailed):
        engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1), max_norm).grad_norm  # noqa: B018


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_gradient_that_is_not_finite_stops_at_any_timing(max_norm: float | None, seed: int):
    of = tiny("llama")
    lanes, _ = fuzzed_lanes(seed)
    with tiny_engine(of, replace(SIZES, gradient_slots=3), lanes=lanes) as engine:
        engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1), max_norm)
        engine.drain()
        with engine.states["model.layers.1"].opened(change=True) as state:
            state.hi[5] = float("nan")
        with pytest.raises(NonFinite, match="step 2: the gradient of .* is not finite") as caught:
            engine.train_step(batch_at(RECORDS, 4, 1), hyper_at(2), max_norm)
            engine.drain()
        assert caught.value.step == 2
        assert engine.find_non_finite(batch_at(RECORDS, 4, 1)) == "the weights of model.layers.1 are not finite"


def test_an_error_in_the_step_itself_refuses_the_next(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    with tiny_engine(tiny("llama")) as engine:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of luck"):
            patch.setattr("slideformer.engine.compute.block_backward", fail)
            engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))
        with pytest.raises(EngineFailed, match=r"an earlier step failed \(RuntimeError\)"):
            engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))


# ---- the end


def test_closing_ends_the_worker_even_after_a_failure(monkeypatch: pytest.MonkeyPatch):
    failing_at(monkeypatch, step=1)
    before = threading.active_count()
    engine = Engine(tiny("llama").decoder, SIZES, torch.float32, threads=1)
    assert threading.active_count() == before  # its thread begins with the first update
    with pytest.raises(WorkerFailed):
        engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))
        engine.drain()
    engine.close()
    assert threading.active_count() == before
