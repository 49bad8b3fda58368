"""A tiny run through the Python API."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_records

from slideformer.listeners.events import Wishes
from slideformer.run.trainer import Trainer

RunTiny = Callable[..., Path]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture
def run_tiny(model: Path, tmp_path: Path) -> RunTiny:
    """Ten records in steps of four, two epochs: six steps; returns the output directory."""

    def run(
        callbacks: Sequence[Any] = (), listeners: Sequence[Any] = (), wishes: Wishes | None = None, **settings: Any
    ) -> Path:
        data = {"path": write_records(tmp_path / "data.jsonl", make_records(10)), "cache_dir": None}
        config = {
            "model": str(model), "output_dir": tmp_path / "out", "data": data, "batch_size": 4, "max_length": 24,
            "num_train_epochs": 2, "parity_check": False, "device": "cpu", "learning_rate": 1e-3, **settings,
        }  # fmt: skip
        Trainer(config, listeners, wishes, callbacks=callbacks).train()
        return tmp_path / "out"

    return run
