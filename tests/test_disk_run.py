"""A whole run with blocks on disk: planned, trained, saved, resumed, the same bits as in memory."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_config, write_records

from slideformer import job, planning
from slideformer.cli import main
from slideformer.config import load_config
from slideformer.engine.engine import Engine
from slideformer.errors import DoesNotFit
from slideformer.storage.checkpoint import find_checkpoints

BLOCKS = 8
SETTINGS: dict[str, Any] = {
    "batch_size": 4, "max_steps": 4, "max_length": 24, "learning_rate": 1e-2, "weight_decay": 0.1, "save_steps": 2,
    "micro_batch_size": 2, "window_depth": 2, "gradient_checkpointing": True,
}  # fmt: skip


class Runs:
    """Runs of one model on the same records, by name."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.model = save_tiny_model(directory / "model", "llama", num_hidden_layers=BLOCKS)
        self.data = write_records(directory / "data.jsonl", make_records(10))
        (directory / "offload").mkdir()

    def config(self, name: str, budget: dict[str, Any], **settings: Any) -> Path:
        path, out = self.directory / f"{name}.yaml", self.directory / name
        return write_config(path, self.model, self.data, out, budget=budget, **SETTINGS, **settings)

    def train(self, name: str, budget: dict[str, Any], **settings: Any) -> bytes:
        assert main(["train", str(self.config(name, budget, **settings))]) == 0
        return (self.directory / name / "model.safetensors").read_bytes()

    def on_disk(self, name: str, what: str = "disk_blocks") -> int:
        return json.loads((self.directory / name / "run.json").read_text())["plan"]["sizes"][what]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(planning, "resident_bytes", lambda: 0)  # of this process; a tiny model is small beside it
    return Runs(tmp_path)


def tight_budget(runs: Runs) -> dict[str, Any]:
    """What host memory needs at the least, half a block's state more, and a directory."""
    needed = job.plan_for(load_config(runs.config("need", {}, save_in_background=False), []))
    state = needed.host["weights and optimizer state"]
    host = needed.host_peak_bytes - state // (4 * BLOCKS)
    with pytest.raises(DoesNotFit, match="host memory needs"):
        job.plan_for(load_config(runs.config("refused", {"host": str(host)}), []))
    return {"host": str(host), "offload_dir": str(runs.directory / "offload")}


def least_budget(runs: Runs) -> dict[str, Any]:
    """Host memory with which there is hardly a plan, and a directory."""
    offload = {"offload_dir": str(runs.directory / "offload")}
    needed = job.plan_for(load_config(runs.config("need", {}, save_in_background=False), []))
    host, step = needed.host_peak_bytes, needed.host_peak_bytes // 100
    while True:
        try:
            job.plan_for(load_config(runs.config("least", {"host": str(host - step), **offload}), []))
        except DoesNotFit:
            return {"host": str(host), **offload}
        host -= step


def test_with_the_least_memory_that_plans_weights_are_on_disk_and_the_model_is_the_same(runs: Runs):
    assert runs.train("least", least_budget(runs)) == runs.train("whole", {})
    assert runs.on_disk("least") == BLOCKS and runs.on_disk("least", "disk_weight_blocks") > 0
    assert list((runs.directory / "offload").iterdir()) == []


def test_a_run_that_host_memory_does_not_hold_ends_with_the_same_model(runs: Runs):
    budget = tight_budget(runs)
    assert runs.train("tight", budget) == runs.train("whole", {})
    assert 0 < runs.on_disk("tight") < BLOCKS and runs.on_disk("whole") == 0
    assert list((runs.directory / "offload").iterdir()) == []


@pytest.mark.parametrize("first", ["tight", "whole"])
def test_it_resumes_under_the_other_budget(first: str, runs: Runs):
    budgets = {"tight": tight_budget(runs), "whole": {}}
    second = "whole" if first == "tight" else "tight"
    expected = runs.train("reference", {})
    runs.train("part", budgets[first], save_total_limit=1)
    (checkpoint,) = find_checkpoints(runs.directory / "part")
    assert checkpoint.name == "checkpoint-2"
    (runs.directory / "part" / "model.safetensors").unlink()
    assert runs.train("part", budgets[second], resume_from_checkpoint="auto") == expected
    assert (runs.on_disk("part") > 0) == (second == "tight")


def test_settings_that_cannot_be_met_are_refused_before_anything_is_read(
    runs: Runs, capsys: pytest.CaptureFixture[str]
):
    config = runs.config("bad", {"offload_dir": str(runs.directory / "missing")})
    assert main(["plan", str(config)]) != 0
    assert "missing is not a directory" in capsys.readouterr().err
    assert main(["plan", str(runs.config("bad", {"disk": "5GiB"}))]) != 0
    assert "set budget.offload_dir to one on a fast local disk" in capsys.readouterr().err


def test_the_engine_takes_a_disk_from_python(runs: Runs):
    with Engine.from_pretrained(
        runs.model, batch_size=2, max_length=24, offload_dir=runs.directory / "offload", parity_check=False
    ) as engine:
        assert engine.origin is not None and engine.origin.plan.disk_budget_bytes
        assert engine.sizes.disk_blocks == 0  # there is room


def test_blocks_can_be_put_there_though_memory_would_hold_them(runs: Runs):
    budget = {"offload_dir": str(runs.directory / "offload")}
    assert runs.train("pinned", budget, disk_blocks=3) == runs.train("whole", {})
    assert runs.on_disk("pinned") == 3
