"""What the report shows of a configuration is what its author has to write to get it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from slideformer.report.settings import as_yaml, changed
from slideformer.settings.config import Config, load_config

WRITTEN: list[dict[str, Any]] = [
    {"model": "m", "output_dir": "out", "data": {"path": "x.jsonl"}},
    {"model": "m", "output_dir": "out", "budget": {"gpu": "8GiB"}, "max_grad_norm": None, "data": {"path": "x.jsonl"}},
    {
        "model": "m", "output_dir": "out", "learning_rate": 3e-5,
        "data": {"sources": [{"path": "a"}, {"path": "b", "split": "test", "weight": 0.5}], "shuffle": False},
    },
]  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
def test_defaults_are_left_out_and_the_rest_means_the_same(tmp_path: Path, written: dict[str, Any]):
    config = Config.model_validate(written)
    text = as_yaml(changed(config.model_dump(mode="json")))
    assert yaml.safe_load(text) == written
    (tmp_path / "run.yaml").write_text(text)
    assert load_config(tmp_path / "run.yaml") == config


def test_keys_of_another_version_are_kept():
    assert changed({"seed": 42, "new_setting": {}, "budget": {"tape": 3, "gpu": None}, "data": 7}) == {
        "new_setting": {}, "budget": {"tape": 3}, "data": 7,
    }  # fmt: skip
