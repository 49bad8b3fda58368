"""A run with `packing: true`, from the command line: its steps, its result, its continuation, its refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model
from tiny_runs import as_int32, make_records, mean_loss, parameter_groups, read_run, train, write_config, write_records
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

from slideformer.cli import main
from slideformer.data.batches import BatchStream, collate
from slideformer.data.examples import Example

RECORDS = make_records(30)
EXAMPLES = [Example(i, *as_int32(record)) for i, record in enumerate(RECORDS)]
ROW_LENGTH = 48
SETTINGS: dict[str, Any] = {
    "packing": True, "batch_size": 3, "max_length": ROW_LENGTH, "num_train_epochs": 2, "learning_rate": 1e-2,
    "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 0.5, "save_steps": 2, "shuffle": True,
    "adam_epsilon": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "mistral", sliding_window=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The directory of a finished run, with checkpoints."""
    directory = tmp_path_factory.mktemp("packed")
    train(config_of(directory, model), directory / "out")
    return directory / "out"


def config_of(directory: Path, model: Path, **settings: Any) -> Path:
    data = write_records(directory / "data.jsonl", RECORDS)
    return write_config(directory / "run.yaml", model, data, directory / "out", **SETTINGS | settings)


def stream() -> BatchStream:
    return BatchStream(EXAMPLES, 3, shuffle=True, seed=42, row_length=ROW_LENGTH)


def test_the_run_is_that_of_the_same_documents_one_a_row(model: Path, whole: Path):
    run, steps = read_run(whole), stream().steps_in(2)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.0), lr=1e-2, betas=(0.9, 0.999), eps=1e-3)
    losses = []
    for step in range(steps):
        loss = mean_loss(plain, collate([EXAMPLES[i] for i in stream().at(step).indices], 0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert run.losses == pytest.approx(losses, rel=2e-5)
    for name, value in plain.named_parameters():
        torch.testing.assert_close(run.weights[name], value.detach(), rtol=0, atol=2e-5)


def test_every_token_of_an_epoch_is_counted_and_rows_are_full(whole: Path):
    steps = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == stream().steps_in(2) < 2 * len(RECORDS) / 3
    tokens = sum(len(record["input_ids"]) for record in RECORDS)
    assert sum(step["tokens"] for step in steps) == 2 * tokens
    assert tokens / (len(stream().rows(0)) * ROW_LENGTH) > 0.9


@pytest.mark.parametrize("step", [2, 4])
def test_it_goes_on_bit_for_bit(tmp_path: Path, model: Path, whole: Path, step: int):
    shutil.copytree(whole / f"checkpoint-{step}", tmp_path / f"out/checkpoint-{step}")
    shutil.copy(whole / "metrics.jsonl", tmp_path / "out")
    config = config_of(tmp_path, model, resume_from_checkpoint="auto")
    assert main(["train", str(config)]) == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert read_run(tmp_path / "out").losses == read_run(whole).losses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": False}, "records were packed into rows of 48 and are not packed now"),
        ({"max_length": 64}, "records were packed into rows of 48 and are packed into rows of 64 now"),
    ],
)
def test_other_rows_are_not_gone_on_with(
    tmp_path: Path, model: Path, whole: Path, settings: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(whole / "checkpoint-2", tmp_path / "out/checkpoint-2")
    assert main(["train", str(config_of(tmp_path, model, resume_from_checkpoint="auto", **settings))]) == 1
    error = capsys.readouterr().err
    assert message in error and "give packing and max_length the values they had" in error


def test_the_plan_is_for_whole_rows(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(config_of(tmp_path, model)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sizes"]["max_length"] == ROW_LENGTH


def test_the_data_command_shows_how_full_rows_are(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", str(config_of(tmp_path, model))]) == 0
    rows = stream().rows(0)
    share = sum(len(record["input_ids"]) for record in RECORDS) / (len(rows) * ROW_LENGTH)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{share:.1%} is with packing: true (rows of {ROW_LENGTH}: {len(rows)} in the first epoch)" in shown


def test_a_model_whose_documents_would_mix_is_refused_before_it_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=2)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    (tmp_path / "bloom/model.safetensors").write_bytes(b"never read")
    assert main(["train", str(config_of(tmp_path, tmp_path / "bloom"))]) == 1
    error = capsys.readouterr().err
    assert "packing: BloomForCausalLM takes no position_ids" in error and "set packing: false" in error


def test_the_check_before_the_run_trains_packed(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(config_of(tmp_path, model, parity_check=True, max_steps=1, save_steps=None))]) == 0
    assert "trains packed as in plain PyTorch" in capsys.readouterr().out


def test_records_cut_to_max_length_fill_a_row_each():
    examples = [replace(example, input_ids=example.input_ids[:6], labels=example.labels[:6]) for example in EXAMPLES]
    packed = BatchStream(examples, 3, shuffle=True, seed=0, row_length=6)
    assert packed.at(0).documents == ((6,),) * 3
