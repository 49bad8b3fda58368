"""A run goes on from its checkpoint as if nothing had happened, or says why it cannot."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_config, write_records
from transformers import AutoModelForCausalLM

from slideformer.cli import main
from slideformer.storage.checkpoint import verify

RECORDS = make_records(10)
BITES = 0.5
SETTINGS: dict[str, Any] = {
    "batch_size": 4, "max_steps": 5, "max_length": 24, "learning_rate": 1e-2, "weight_decay": 0.1, "save_steps": 2,
    "lr_scheduler_type": "cosine", "micro_batch_size": 2, "shuffle": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


class Runs:
    """An uninterrupted run, and runs that continue from copies of what it left."""

    def __init__(self, directory: Path, model: Path, **settings: Any):
        self.directory, self.model, self.settings = directory, model, {**SETTINGS, **settings}
        self.data = write_records(directory / "data.jsonl", RECORDS)
        assert self.start("whole") == 0

    def start(self, name: str, *words: str, **settings: Any) -> int:
        out = self.directory / name
        config = write_config(self.directory / f"{name}.yaml", self.model, self.data, out, **self.settings | settings)
        return main(["train", str(config), *words])

    def stopped_at(self, *steps: int, name: str = "part") -> Path:
        """What a run that was killed behind the last of these steps leaves."""
        part = self.directory / name
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for step in steps:
            shutil.copytree(self.directory / f"whole/checkpoint-{step}", part / f"checkpoint-{step}")
        shutil.copy(self.directory / "whole/metrics.jsonl", part)
        return part

    def resume(self, *words: str, **settings: Any) -> int:
        return self.start("part", "--resume_from_checkpoint=auto", *words, **settings)

    def assert_same_result(self) -> None:
        whole, part = self.directory / "whole", self.directory / "part"
        assert (whole / "model.safetensors").read_bytes() == (part / "model.safetensors").read_bytes()
        assert recorded(whole) == recorded(part)


def recorded(directory: Path) -> list[tuple[Any, ...]]:
    steps = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [tuple(step[key] for key in ("step", "loss", "grad_norm", "learning_rate", "tokens")) for step in steps]


@pytest.fixture(scope="module", params=[None, BITES], ids=["unclipped", "clipped"])
def runs(tmp_path_factory: pytest.TempPathFactory, model: Path, request: pytest.FixtureRequest) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), model, max_grad_norm=request.param)


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("depth", ["2", "3"])
def test_the_rest_of_the_run_is_the_same_bit_for_bit(runs: Runs, step: int, depth: str):
    runs.stopped_at(step)
    assert runs.resume("--window_depth", depth) == 0
    runs.assert_same_result()


def test_bf16_moments_resume_bit_for_bit_and_their_type_stays(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs = Runs(tmp_path, model, optimizer_state="bf16")
    runs.stopped_at(2)
    assert runs.resume("--window_depth", "3") == 0
    runs.assert_same_result()
    checkpoint = tmp_path / "part/checkpoint-4"
    assert verify(checkpoint).run.optimizer_state == "bf16"
    moments = load_file(next(checkpoint.glob("*layers.1.safetensors")))
    assert (moments["exp_avg"].dtype, moments["exp_avg_sq"].dtype) == (torch.bfloat16, torch.bfloat16)
    runs.stopped_at(2)
    capsys.readouterr()
    assert runs.resume(optimizer_state="fp32") == 1
    errors = capsys.readouterr().err
    assert "optimizer_state was bf16 and is fp32 now" in errors and "hint: set optimizer_state: bf16; or" in errors


def test_a_named_checkpoint_of_another_directory(runs: Runs):
    shutil.rmtree(runs.directory / "part", ignore_errors=True)
    assert runs.start("part", "--resume_from_checkpoint", str(runs.directory / "whole/checkpoint-2")) == 0
    lines = recorded(runs.directory / "part")
    assert lines == recorded(runs.directory / "whole")[2:]


def test_the_micro_batch_size_is_kept_where_it_was_chosen(
    runs: Runs, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs.stopped_at(2)
    assert runs.resume(micro_batch_size=None) == 0  # on its own, the planner takes all four sequences at once
    assert "not as the run would have gone on" not in capsys.readouterr().out
    runs.assert_same_result()
    runs.stopped_at(2)
    assert runs.resume("--micro_batch_size=4", "--learning_rate=0.02") == 0
    output = capsys.readouterr().out
    assert "by itself: learning_rate 0.01 -> 0.02; micro_batch_size 2 -> 4\n" in output


def test_the_newest_whole_checkpoint_is_used_and_a_damaged_one_named(runs: Runs, capsys: pytest.CaptureFixture[str]):
    part = runs.stopped_at(2, 4)
    file = next((part / "checkpoint-4").glob("*layers.1.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert runs.resume() == 0
    output = capsys.readouterr().out
    assert f"skipped {part / 'checkpoint-4'}: {file} was changed after it was written" in output
    assert f"resumed from {part / 'checkpoint-2'}, after step 2" in output
    runs.assert_same_result()


def test_a_damaged_manifest_is_named(runs: Runs, capsys: pytest.CaptureFixture[str]):
    part = runs.stopped_at(2, 4)
    (part / "checkpoint-4/manifest.json").write_text("{")
    assert runs.resume() == 0
    assert f"skipped {part / 'checkpoint-4'}: {part}/checkpoint-4/manifest.json is not" in capsys.readouterr().out
    runs.assert_same_result()


def test_without_a_whole_checkpoint_nothing_is_trained(runs: Runs, capsys: pytest.CaptureFixture[str]):
    part = runs.stopped_at(2)
    next((part / "checkpoint-2").glob("*shell.safetensors")).unlink()
    assert runs.resume() == 1
    assert f"error: no checkpoint in {part} is whole\nhint: remove the damaged ones" in capsys.readouterr().err
    named = runs.start("part", "--resume_from_checkpoint", str(part / "checkpoint-2"))
    assert named == 1 and "No such file" in capsys.readouterr().err
    assert not (part / "model.safetensors").exists()


def test_what_a_kill_left_is_removed(runs: Runs):
    part = runs.stopped_at(2)
    for name in (".checkpoint-4.partial", ".checkpoint-1.removed"):
        (part / name).mkdir()
    assert runs.resume() == 0
    assert not list(part.glob(".checkpoint-*"))


def test_a_directory_with_checkpoints_is_not_started_over(runs: Runs, capsys: pytest.CaptureFixture[str]):
    runs.stopped_at(2)
    assert runs.start("part") == 1
    errors = capsys.readouterr().err
    assert "part holds checkpoints of an earlier run, such as checkpoint-2" in errors
    assert "hint: set resume_from_checkpoint: auto" in errors


def test_auto_in_an_empty_directory_starts_from_the_beginning(runs: Runs, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(runs.directory / "part", ignore_errors=True)
    assert runs.resume() == 0
    assert "no checkpoint in" in capsys.readouterr().out
    runs.assert_same_result()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 2}, "batch_size was 4 and is 2 now"),
        ({"seed": 7}, "seed was 42 and is 7 now"),
        ({"max_length": 9}, "its 10 records are not the 10 records of now"),
    ],
)
def test_other_data_or_another_order_is_refused(
    runs: Runs, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
):
    runs.stopped_at(2)
    assert runs.resume(**change) == 1
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs.stopped_at(2)
    other = save_tiny_model(tmp_path / "other", "qwen3", num_hidden_layers=2)
    assert runs.resume(f"--model={other}") == 1
    assert "is of another model; units that only one of them has: model.layers.2" in capsys.readouterr().err


def test_only_the_newest_are_kept_and_models_come_on_request(model: Path, tmp_path: Path):
    runs = Runs(tmp_path, model, save_steps=1, save_total_limit=2, export_checkpoints=True)
    assert sorted(path.name for path in (tmp_path / "whole").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole/checkpoint-4/model")
    runs.stopped_at(3)
    assert runs.resume() == 0
    runs.assert_same_result()


def test_other_weights_of_the_sources_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_records(tmp_path / "data.jsonl", RECORDS)

    def train(weight: float, *words: str) -> int:
        sources = {"sources": [{"path": str(data), "weight": weight}], "cache_dir": None}
        settings: dict[str, Any] = SETTINGS | {"max_steps": 3}
        config = write_config(tmp_path / "run.yaml", model, data, tmp_path / "out", **settings)
        config.write_text(json.dumps({**json.loads(config.read_text()), "data": sources}))
        return main(["train", str(config), *words])

    assert train(0.5) == 0
    assert train(0.8, "--resume_from_checkpoint=auto") == 1
    assert "the weights of data.sources were [0.5], now [0.8]" in capsys.readouterr().err
