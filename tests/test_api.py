"""The Python API: what `import slideformer` offers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_model
from tiny_runs import HYPER, batch_at, make_records, read_run, write_config, write_records
from transformers import AutoModelForCausalLM

import slideformer
from slideformer.errors import ConfigError, DoesNotFit

RECORDS = make_records(4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


def test_importing_it_imports_nothing_heavy():
    heavy = "[name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules]"
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys, slideformer; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in slideformer.__all__:
        assert getattr(slideformer, name).__name__ == name and name in dir(slideformer)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = slideformer.nothing_like_it


def test_the_trainer_takes_a_path_a_dict_or_a_config(model: Path, tmp_path: Path):
    data = write_records(tmp_path / "data.jsonl", RECORDS)
    losses = []
    path = write_config(tmp_path / "run.yaml", model, data, tmp_path / "out", max_steps=2, batch_size=2)
    as_dict = slideformer.load_config(path).model_dump()
    for config in (path, str(path), as_dict, slideformer.load_config(path)):
        slideformer.Trainer(config).train()
        losses.append(read_run(tmp_path / "out").losses)
    assert losses == [losses[0]] * 4 and len(losses[0]) == 2


def test_a_wrong_setting_in_a_dict_is_explained():
    with pytest.raises(ConfigError, match="config: unknown setting learning_rte"):
        slideformer.Trainer({"model": "m", "output_dir": "o", "data": {"path": "d"}, "learning_rte": 1})


def test_an_engine_from_a_directory_trains_and_saves(model: Path, tmp_path: Path):
    batch = batch_at(RECORDS, 4, 0)
    with slideformer.Engine.from_pretrained(
        model, batch_size=4, max_length=24, device="cpu", parity_check=False
    ) as engine:
        assert engine.origin and engine.origin.plan.sizes == engine.sizes
        first = engine.train_step(batch, HYPER, max_norm=1.0).loss
        second = engine.train_step(batch, slideformer.AdamWStep(1e-2, 0.9, 0.99, 1e-3, 0.1, step=2), max_norm=1.0).loss
        engine.save_pretrained(tmp_path / "saved")
        weights = {name: value for _, group in engine.weights(torch.float32) for name, value in group.items()}
    assert second < first
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.named_parameters() if name in weights)


def test_an_engine_s_sizes_can_be_pinned(model: Path, tmp_path: Path):
    with slideformer.Engine.from_pretrained(
        model, batch_size=4, max_length=24, device="cpu", parity_check=False, kept=1, offload_dir=tmp_path,
        micro_batch_size=2, pins=slideformer.Pins(host_boundaries=1, disk_blocks=1),
    ) as engine:  # fmt: skip
        sizes = engine.sizes
        assert (sizes.kept, sizes.host_boundaries, sizes.disk_blocks, sizes.micro_batch_size) == (1, 1, 1, 2)
        assert engine.train_step(batch_at(RECORDS, 4, 0), HYPER, max_norm=1.0).loss > 0
    with pytest.raises(ConfigError, match="resident: 1, but only what computes in bf16 on a GPU"):
        slideformer.Engine.from_pretrained(
            model, batch_size=4, max_length=24, device="cpu", parity_check=False, resident=1
        )


def test_an_engine_that_does_not_fit_says_what_would(model: Path):
    with pytest.raises(DoesNotFit, match="host memory needs"):
        slideformer.Engine.from_pretrained(
            model, batch_size=4, max_length=24, device="cpu", host_budget="1MiB", parity_check=False
        )
