"""Evaluation and generation on a GPU: what the CPU gives in fp32, from memory that was planned for."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import (
    SIZES,
    States,
    Subject,
    batch_at,
    differences,
    hyper_at,
    make_records,
    states_of,
    subject,
    tiny_engine,
)

from slideformer.engine.inference import InferenceEngine
from slideformer.engine.measure import model_sizes
from slideformer.engine.measure_inference import measure_inference
from slideformer.engine.sampling import Decoding
from slideformer.plan.inference import plan_inference
from slideformer.plan.sizes import InferenceSizes
from slideformer.units import GIB, MIB

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(280)]

FAMILIES = ["llama", "qwen3", "gemma2"]
RECORDS = make_records(12)
PROMPTS = [[5, 6, 7], [9] * 11, [20, 30, 40, 50], [3]]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 matrix products in fp32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@cache
def tiny(family: str, device: str) -> Subject:
    return subject(tiny_model(family, num_hidden_layers=5), device)


def answers(family: str, device: str, depth: int, dtype: torch.dtype = torch.float32) -> list[list[int]]:
    of = tiny(family, device)
    start = dict(of.model.named_parameters())
    with InferenceEngine(of.decoder, InferenceSizes(depth, 2, 2, 16), dtype) as engine:
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        return engine.generate(PROMPTS, Decoding(20))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_cpu(family: str):
    assert answers(family, "cuda", 2) == answers(family, "cpu", 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_window_does_not_matter(dtype: torch.dtype):
    assert (
        answers("llama", "cuda", 2, dtype) == answers("llama", "cuda", 4, dtype) == answers("llama", "cuda", 5, dtype)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_held_out_loss_is_that_of_the_cpu(family: str):
    losses = []
    for device in ("cpu", "cuda"):
        with tiny_engine(tiny(family, device)) as engine:
            losses.append(engine.evaluate([batch_at(RECORDS, 4, k) for k in range(3)]).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_training_keeps_every_bit(max_norm: float | None):
    def train(interrupted: bool) -> States:
        with tiny_engine(tiny("llama", "cuda"), replace(SIZES, gradient_slots=5)) as e:
            for k in range(3):
                if interrupted:
                    e.evaluate([batch_at(RECORDS, 4, j) for j in range(2)])
                    e.generate(PROMPTS, Decoding(5))
                e.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)
            return states_of(e)

    assert differences(train(True), train(False)) == []


def test_memory_is_as_planned():
    of = subject(tiny_model("llama", hidden_size=1024, intermediate_size=4096, num_hidden_layers=6), "cuda")
    work = measure_inference(of.decoder, 64, torch.bfloat16)
    plan = plan_inference(model_sizes(of.decoder), work, 16, 64, 128, torch.bfloat16, 64 * GIB, 90 * MIB, 0)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with InferenceEngine(of.decoder, plan.sizes, torch.bfloat16) as engine:
        engine.generate([[5] * 64] * 16, Decoding(64))
        assert torch.cuda.max_memory_allocated() - before <= sum(plan.device.values())
