"""With `packing: true`: held-out loss, sample answers and freezing are what they are without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_tiny_model, save_tiny_tokenizer
from tiny_runs import (
    Run,
    answer_of,
    as_int32,
    batch_at,
    make_records,
    mean_loss,
    parameter_groups,
    train,
    write_config,
    write_records,
)
from transformers import AutoModelForCausalLM

from slideformer.data.batches import BatchStream, collate
from slideformer.data.examples import Example
from slideformer.listeners.metrics import EvalStats, Sample
from slideformer.listeners.run_directory import read_log, read_metrics

RECORDS, HELD_OUT = make_records(20), make_records(7, seed=9)
EXAMPLES = [Example(i, *as_int32(record)) for i, record in enumerate(RECORDS)]
PROMPTS = ["w5 w6 w7 w9 w11 w13 w40 w41 w42 w43 w44", "w9"]
SETTINGS: dict[str, Any] = {
    "packing": True, "batch_size": 2, "max_length": 48, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
    "max_steps": 4, "max_grad_norm": 0.5, "adam_epsilon": 1e-3, "shuffle": True,
}  # fmt: skip


@pytest.fixture(scope="module", params=["mistral", "gemma2"])  # sliding windows shorter than prompts; soft-caps
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param
    return save_tiny_tokenizer(save_tiny_model(tmp_path_factory.mktemp("model"), family, sliding_window=8))


def start(directory: Path, model: Path, **settings: Any) -> Run:
    directory.mkdir(exist_ok=True)
    data = write_records(directory / "data.jsonl", RECORDS)
    config = write_config(directory / "run.yaml", model, data, directory / "out", **SETTINGS | settings)
    return train(config, directory / "out")


def interludes(directory: Path) -> dict[str, Any]:
    directory.mkdir(exist_ok=True)
    held_out = write_records(directory / "held_out.jsonl", HELD_OUT)
    return {
        "eval_data": {"path": str(held_out)}, "eval_steps": 1, "eval_on_start": True,
        "sample_prompts": PROMPTS, "sample_max_new_tokens": 6,
    }  # fmt: skip


def samples(directory: Path) -> list[Sample]:
    return read_log(directory / "out/samples.jsonl", Sample)


def loss_of(model: Path) -> float:
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return float(mean_loss(plain, batch_at(HELD_OUT, len(HELD_OUT), 0)))


def test_a_packed_run_that_evaluates_and_answers_is_the_run_that_does_not(model: Path, tmp_path: Path):
    asked = start(tmp_path / "asked", model, **interludes(tmp_path))
    silent = start(tmp_path / "silent", model)
    assert asked.losses == silent.losses and asked.norms == silent.norms
    assert all(torch.equal(value, silent.weights[name]) for name, value in asked.weights.items())


def test_held_out_loss_and_answers_are_those_of_plain_pytorch(model: Path, tmp_path: Path):
    start(tmp_path, model, **interludes(tmp_path))
    out = tmp_path / "out"
    evals = read_log(out / "evals.jsonl", EvalStats)
    assert [stats.step for stats in evals] == [0, 1, 2, 3, 4]
    assert evals[0].loss == pytest.approx(loss_of(model), rel=1e-5)
    assert evals[-1].loss == pytest.approx(loss_of(out), rel=1e-5)
    first, last = ([s.answer for s in samples(tmp_path) if s.step == step] for step in (0, 4))
    assert first == [answer_of(model, prompt) for prompt in PROMPTS]
    assert last == [answer_of(out, prompt) for prompt in PROMPTS]


def test_answers_before_training_are_those_of_an_unpacked_run(model: Path, tmp_path: Path):
    for name, packing in (("packed", True), ("padded", False)):
        start(tmp_path / name, model, packing=packing, max_steps=1, **interludes(tmp_path))
    packed, padded = ([s for s in samples(tmp_path / name) if s.step == 0] for name in ("packed", "padded"))
    assert packed == padded and len(packed) == len(PROMPTS)


def test_records_that_are_held_out_are_not_packed(model: Path, tmp_path: Path):
    start(tmp_path, model, eval_size=0.25, max_steps=-1, num_train_epochs=1)
    (stats,) = read_log(tmp_path / "out/evals.jsonl", EvalStats)
    trained = sum(step.trained_tokens for step in read_metrics(tmp_path / "out/metrics.jsonl"))
    assert stats.tokens > 0 and trained + stats.tokens == sum(len(record["labels"]) - 2 for record in RECORDS)


def test_frozen_parameters_in_a_packed_run(model: Path, tmp_path: Path):
    patterns = [r"embed_tokens", r"layers\.0\.", r"norm"]
    run = start(tmp_path, model, frozen=patterns)
    before = {n: v for f in model.glob("*.safetensors") for n, v in load_file(f).items()}
    expected, losses = plain_weights(model, patterns)
    assert run.losses == pytest.approx(losses, rel=2e-5)
    for name, value in run.weights.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-5, msg=name)
        assert torch.equal(value, before[name]) == any(p.replace("\\", "") in name for p in patterns), name


def plain_weights(model: Path, frozen: list[str]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same documents, one a row, in plain PyTorch."""
    stream = BatchStream(EXAMPLES, 2, shuffle=True, seed=42, row_length=48)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(not any(p.replace("\\", "") in name for p in frozen))
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.0), lr=1e-2, eps=1e-3)
    losses = []
    for step in range(4):
        loss = mean_loss(plain, collate([EXAMPLES[i] for i in stream.at(step).indices], 0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return {name: value.detach() for name, value in plain.named_parameters()}, losses
