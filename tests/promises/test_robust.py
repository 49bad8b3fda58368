"""Promise "Robust from the start": a mistake is told with its cause and a remedy, and nothing good is lost by it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_config, write_records
from transformers import T5Config

from slideformer.cli import main
from slideformer.optim.adamw import AdamWStep, LayerAdam

RECORDS = make_records(8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@dataclass
class Setup:
    """One run's files, and a way to start it with changes."""

    directory: Path
    model: Path
    capture: pytest.CaptureFixture[str]

    @property
    def data(self) -> Path:
        return self.directory / "data.jsonl"

    @property
    def output_dir(self) -> Path:
        return self.directory / "out"

    def train(self, *overrides: str, **settings: Any) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        settings = {"max_steps": 4, "batch_size": 2, "max_length": 24, "learning_rate": 1e-3, **settings}
        model = Path(settings.pop("model", self.model))
        config = write_config(self.directory / "run.yaml", model, self.data, self.output_dir, **settings)
        self.capture.readouterr()
        code = main(["train", str(config), *overrides])
        output = self.capture.readouterr()
        return code, output.out, output.err

    def refused(self, *overrides: str, **settings: Any) -> str:
        code, _, errors = self.train(*overrides, **settings)
        assert code == 1
        message, hint, rest = errors.split("\n", 2)
        assert message.startswith("error: ") and hint.startswith("hint: ")
        assert all(line.startswith("  ") for line in rest.splitlines())  # of a hint that has several
        return errors


@pytest.fixture
def setup(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> Setup:
    setup = Setup(tmp_path, model, capsys)
    write_records(setup.data, RECORDS)
    return setup


# ---- before anything is trained


def test_a_missing_data_file(setup: Setup):
    setup.data.unlink()
    errors = setup.refused()
    assert f"cannot read {setup.data}: No such file or directory" in errors and "hint: give data.path" in errors


def test_a_missing_model(setup: Setup):
    errors = setup.refused(model=str(setup.directory / "nowhere"))
    assert "nowhere is not a directory" in errors and "hint: give a model directory or a hub id" in errors


def test_a_missing_weight_file(setup: Setup, tmp_path: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((setup.model / "config.json").read_text())
    errors = setup.refused(model=str(bare))
    assert (
        f"{bare} holds no model.safetensors" in errors and "hint: give a directory written by save_pretrained" in errors
    )


def test_an_unknown_key_names_the_nearest(setup: Setup):
    errors = setup.refused(lerning_rate=1e-3)
    assert "unknown setting lerning_rate" in errors and "hint: did you mean learning_rate?" in errors


def test_an_unknown_option_names_the_nearest(setup: Setup):
    assert "hint: did you mean window_depth?" in setup.refused("--window_dept", "3")


def test_an_encoder_decoder_model(setup: Setup, tmp_path: Path):
    T5Config(num_layers=2, d_model=16, d_kv=4, d_ff=16, num_heads=4, vocab_size=128).save_pretrained(tmp_path / "t5")
    errors = setup.refused(model=str(tmp_path / "t5"))
    assert "t5 (T5Config) is an encoder-decoder model" in errors and "hint: only decoder-only" in errors


def test_an_empty_data_set(setup: Setup):
    setup.data.write_text("\n\n")
    errors = setup.refused()
    assert f"{setup.data} holds no records" in errors and "at least one record" in errors


def test_a_data_set_with_nothing_to_train(setup: Setup):
    write_records(setup.data, [{"input_ids": [5, 6, 7], "labels": [-100] * 3}])
    errors = setup.refused()
    assert "none of the 1 records can be trained on: 0 longer than max_length, 1 without a trained token" in errors


@pytest.mark.parametrize(("too_long", "kept", "words"), [("truncate", 8, "truncated"), ("drop", 7, "dropped")])
def test_a_record_longer_than_max_length_is_counted(setup: Setup, too_long: str, kept: int, words: str):
    ids = list(range(3, 43))
    write_records(setup.data, [*[{"input_ids": ids[:9], "labels": ids[:9]}] * 7, {"input_ids": ids, "labels": ids}])
    code, output, _ = setup.train(too_long=too_long)
    assert code == 0
    assert f"data: {kept} of 8 records" in output
    assert re.search(rf"1 \w.*max_length.*|1 {words} to max_length", output) and words in output
    steps = [json.loads(line) for line in (setup.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["tokens"] for step in steps] == ([18, 18, 18, 9 + 24] if kept == 8 else [18, 18, 18, 9])


def test_host_memory_that_is_too_small(setup: Setup):
    errors = setup.refused(budget={"host": "200MiB"})
    assert re.search(r"host memory needs [\d.]+ \wiB, and its budget is 200 MiB; largest: process", errors)
    assert re.search(r"^(hint:| ) budget\.host: [\d.]+[MG]iB$", errors, re.MULTILINE)


# ---- while training


def poisoned(model: Path, directory: Path, name: str, value: float) -> Path:
    """A copy of the model with one bad number in one parameter."""
    directory.mkdir()
    weights = load_file(model / "model.safetensors")
    weights[name].view(-1)[0] = value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text((model / "config.json").read_text())
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a saved model; what the run says of itself is not part of it."""
    told = {"metrics.jsonl", "evals.jsonl", "samples.jsonl", "run.json"}
    return {f.name: f.read_bytes() for f in directory.iterdir() if f.is_file() and f.name not in told}


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("model.layers.1.mlp.up_proj.weight", float("nan"), "the weights of model.layers.1 are not finite"),
        ("model.layers.1.mlp.up_proj.weight", 3e38, "the output of model.layers.1 is the first that is not finite"),
        ("model.layers.2.input_layernorm.weight", float("inf"), "the weights of model.layers.2 are not finite"),
        ("model.embed_tokens.weight", float("-inf"), "the weights of embedding are not finite"),
    ],
)
def test_a_loss_that_is_not_a_number(
    setup: Setup, tmp_path: Path, max_grad_norm: float | None, name: str, value: float, place: str
):
    write_records(
        setup.data, [{"input_ids": [0, *record["input_ids"]], "labels": [0, *record["labels"]]} for record in RECORDS]
    )
    bad = poisoned(setup.model, tmp_path / "bad", name, value)
    errors = setup.refused(model=str(bad), max_grad_norm=max_grad_norm)
    assert "error: step 1: the gradient of " in errors and place in errors
    assert "records of the batch: 0, 1" in errors
    assert "hint: lower learning_rate or check the batch; the last saved model is untouched" in errors


@pytest.mark.parametrize("max_grad_norm", [None, 1e9])
def test_a_run_that_diverges_names_its_step_and_keeps_the_model_of_the_run_before(
    setup: Setup, max_grad_norm: float | None
):
    assert setup.train()[0] == 0
    good = contents(setup.output_dir)
    assert "model.safetensors" in good
    errors = setup.refused(learning_rate=1e30, lr_scheduler_type="constant", max_grad_norm=max_grad_norm)
    assert "error: step 2: " in errors and "records of the batch: 2, 3" in errors
    assert contents(setup.output_dir) == good


@pytest.mark.timeout(60)
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_an_exception_in_the_update_worker_reaches_the_caller(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, max_grad_norm: float | None
):
    steps: list[int] = []

    def failing(self: LayerAdam, spans: Any, grad: torch.Tensor | None, hyper: AdamWStep) -> None:
        steps.append(hyper.step)
        if hyper.step == 2:
            raise OSError("no luck")

    monkeypatch.setattr(LayerAdam, "step_spans", failing)  # the update of a block or of the head
    errors = setup.refused(max_grad_norm=max_grad_norm)
    assert re.search(r"error: step 2: the update of (model\.layers\.\d|head|shell) failed: OSError: no luck", errors)
    assert "hint: the weights in memory are those of different steps; continue from the last saved model" in errors
    assert steps.count(2) == 1 and max(steps) == 2
    assert not (setup.output_dir / "model.safetensors").exists()
