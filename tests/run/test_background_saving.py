"""Checkpoints of a run that goes on meanwhile: the same files, told when they are durable, and nothing else changed."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_config, write_records

from slideformer.cli import main
from slideformer.engine.engine import Engine
from slideformer.listeners.events import Listener, Wishes
from slideformer.prepare import planning
from slideformer.prepare.job import plan_for
from slideformer.run.trainer import Trainer
from slideformer.settings.config import load_config
from slideformer.storage import checkpoint
from slideformer.storage.checkpoint import find_checkpoints, verify
from slideformer.storage.tensor_file import write_tensors

SETTINGS: dict[str, Any] = {
    "batch_size": 4, "max_steps": 5, "max_length": 24, "learning_rate": 1e-2, "weight_decay": 0.1, "save_steps": 2,
    "micro_batch_size": 2, "shuffle": True,
}  # fmt: skip


class Runs:
    def __init__(self, directory: Path):
        self.directory = directory
        self.model = save_tiny_model(directory / "model", "qwen3")
        self.data = write_records(directory / "data.jsonl", make_records(10))

    def config(self, name: str, **settings: Any) -> Path:
        path, out = self.directory / f"{name}.yaml", self.directory / name
        return write_config(path, self.model, self.data, out, **SETTINGS | settings)

    def files(self, name: str) -> dict[str, bytes]:
        """All weights and states that a run left, by path."""
        out = self.directory / name
        return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_it_leaves_what_a_run_leaves_that_stands_still(runs: Runs, max_grad_norm: float | None):
    left = []
    for background in (True, False):
        name = f"{'meanwhile' if background else 'still'}-{max_grad_norm}"
        config = runs.config(name, max_grad_norm=max_grad_norm, save_in_background=background)
        assert main(["train", str(config)]) == 0
        left.append(runs.files(name))
    assert left[0] == left[1] and sum("checkpoint-4/" in file for file in left[0]) > 4


def slow(monkeypatch: pytest.MonkeyPatch, until: Callable[[], object]) -> None:
    def write(*args: Any) -> Any:
        until()
        return write_tensors(*args)

    monkeypatch.setattr(checkpoint, "write_tensors", write)


def test_training_goes_on_and_is_told_when_it_is_durable(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    steps_over, told = threading.Event(), []
    slow(monkeypatch, lambda: steps_over.wait(60))

    class Watcher(Listener):
        def stepped(self, stats: Any) -> None:
            told.append(stats.step)
            if stats.step == 3:  # only then may anything be written of step 2
                steps_over.set()

        def saved(self, step: int, path: Path) -> None:
            assert path.is_dir() and threading.current_thread() is threading.main_thread()
            told.append(f"saved {step}")

    config = runs.config("told", max_steps=6, save_steps=2, save_total_limit=1)
    Trainer(config, [Watcher()]).train()
    assert told.index("saved 2") > told.index(3) and told[-1] == "saved 6"
    assert [entry for entry in told if isinstance(entry, str)] == ["saved 2", "saved 4", "saved 6"]
    assert [path.name for path in find_checkpoints(runs.directory / "told")] == ["checkpoint-4"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_what_writes_gives_way_to_what_trains(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    seen = []
    slow(monkeypatch, lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert main(["train", str(runs.config("polite"))]) == 0
    assert set(seen) == {19} and os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_checkpoint_is_published_behind_the_records_of_its_step(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    out, rename, seen = runs.directory / "behind", os.rename, {}

    def renamed(source: Path, target: Path) -> None:
        if target.name.startswith("checkpoint-"):
            seen[target.name] = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)
    assert main(["train", str(runs.config("behind", save_steps=1))]) == 0
    assert list(seen) == [f"checkpoint-{step}" for step in range(1, 5)]
    assert all(int(name.partition("-")[2]) in steps for name, steps in seen.items())


def test_a_full_disk_ends_the_run_with_the_remedy(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    assert main(["train", str(runs.config("full"))]) == 1
    errors = capsys.readouterr().err
    assert "cannot save" in errors and "checkpoint-2: No space left on device" in errors and "free space" in errors
    out = runs.directory / "full"
    assert find_checkpoints(out) == [] and not list(out.glob(".checkpoint-*"))
    assert not (out / "model.safetensors").exists()


def test_a_checkpoint_on_its_way_outlives_a_run_that_fails(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    failing, train_step = threading.Event(), Engine.train_step
    slow(monkeypatch, lambda: failing.wait(60))

    def step(engine: Engine, batch: Any, hyper: Any, *args: Any, **kwargs: Any) -> Any:
        if hyper.step == 4:
            failing.set()
            raise RuntimeError("injected")
        return train_step(engine, batch, hyper, *args, **kwargs)

    monkeypatch.setattr(Engine, "train_step", step)
    with pytest.raises(RuntimeError, match="injected"):
        Trainer(runs.config("failed")).train()
    (path,) = find_checkpoints(runs.directory / "failed")
    assert verify(path).step == 2
    assert "training failed; finishing the checkpoint of step 2" in capsys.readouterr().out
    assert (path / "manifest.json").exists() and not list(path.parent.glob(".checkpoint-*"))


def test_a_stop_finishes_the_one_on_its_way_and_saves_its_own(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    stopping, wishes = threading.Event(), Wishes()
    slow(monkeypatch, lambda: stopping.wait(60))

    class Stopper(Listener):
        def stepped(self, stats: Any) -> None:
            if stats.step == 2:
                wishes.stop = True
                stopping.set()

    assert Trainer(runs.config("stopped"), [Stopper()], wishes).train() == runs.directory / "stopped/checkpoint-3"
    assert [verify(path).step for path in find_checkpoints(runs.directory / "stopped")] == [3, 2]


def test_with_an_export_training_stands_still(runs: Runs, capsys: pytest.CaptureFixture[str]):
    config = runs.config("exported", export_checkpoints=True)
    assert not load_config(config).saves_in_background
    assert main(["train", str(config)]) == 0
    assert "while training went on" not in capsys.readouterr().out
    assert (runs.directory / "exported/checkpoint-2/model/model.safetensors").exists()


# ---- the plan


def copies(runs: Runs, **settings: Any) -> tuple[int, int, int]:
    plan = plan_for(load_config(runs.config("planned", **settings)))
    assert plan.host_peak_bytes <= plan.host_budget_bytes
    return plan.sizes.snapshot_units, plan.host["checkpoint copies"], plan.host["weights and optimizer state"]


def test_the_whole_state_is_copied_where_there_is_room(runs: Runs):
    units, held, state = copies(runs)
    assert held == state and units == 2 + 3  # embedding, shell and three blocks
    assert copies(runs, save_steps=None)[:2] == (0, 0) == copies(runs, save_in_background=False)[:2]


def test_less_memory_holds_fewer_copies_and_in_the_end_none(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(planning, "resident_bytes", lambda: 0)  # of this process; a tiny model is small beside it
    without = plan_for(load_config(runs.config("planned", save_steps=None, gradient_checkpointing=True)))
    needed, state = without.host_peak_bytes, without.host["weights and optimizer state"]
    found = []
    for more in (0, state // 2, state):
        budget = {"host": f"{needed + more}B"}
        found.append(copies(runs, budget=budget, gradient_checkpointing=True)[0])
    assert found == sorted(found) and found[0] == 0 and 0 < found[1] < found[2] == 5


def test_the_engine_allocates_what_the_plan_says(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    seen = []
    close = Engine.close

    def closed(engine: Engine) -> None:
        seen.append((engine.allocator.allocated_bytes["checkpoint copies"], engine.sizes.snapshot_units))
        close(engine)

    monkeypatch.setattr(Engine, "close", closed)
    assert main(["train", str(runs.config("allocated"))]) == 0
    plan = json.loads((runs.directory / "allocated/run.json").read_text())["plan"]
    assert seen == [(plan["host_bytes"]["checkpoint copies"], plan["sizes"]["snapshot_units"])]
