"""Promise "nothing lost": killed at any moment and resumed, a run ends with the bits of one that was never killed.

Moments are drawn from a seed: before or after some call of loading, computing, updating, saving, renaming, removing,
and at arbitrary instructions. The resumed run has another window, and is killed again in half of the cases. A few seeds
run always, all 100 with `make kill-test`.
"""

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from killed_runs import FIRST_RUN, MOMENTS, Kill, finished, killed_after, start
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_config, write_records

from slideformer.storage.checkpoint import find_checkpoints, verify

SEEDS, ALWAYS = 100, 8
ANY_TIME = "any time"
LONGEST_SECONDS = 1.5  # a run takes about as long on an idle machine
SAVE_STEPS = 2
KILLED = -9
SETTINGS: dict[str, Any] = {
    "batch_size": 4, "micro_batch_size": 2, "max_steps": 7, "max_length": 24, "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine", "weight_decay": 0.1, "shuffle": True, "save_steps": SAVE_STEPS,
    "save_total_limit": 2, "export_checkpoints": True,
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """The run that nobody killed."""

    weights: bytes
    steps: list[tuple[Any, ...]]
    calls: dict[str, int]


class Files:
    """The inputs that all runs share."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.model = save_tiny_model(directory / "model", "qwen3", hidden_size=32, intermediate_size=48)
        self.data = write_records(directory / "data.jsonl", make_records(10))

    def config(self, name: str, clipping: bool) -> list[str]:
        out, norm = self.directory / name, 0.5 if clipping else None
        path = self.directory / f"{name}.yaml"
        return ["train", str(write_config(path, self.model, self.data, out, max_grad_norm=norm, **SETTINGS))]

    @cache  # noqa: B019  # as long as the module's fixture
    def reference(self, clipping: bool) -> Reference:
        name = f"whole-{clipping}"
        counts = self.directory / f"{name}.json"
        assert finished(start(self.config(name, clipping), self.directory / f"{name}.log", counts=counts)) == 0
        out = self.directory / name
        calls = json.loads(counts.read_text())
        return Reference((out / "model.safetensors").read_bytes(), recorded(out), calls)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("killed"))


def recorded(output_dir: Path) -> list[tuple[Any, ...]]:
    """What the metrics file says of each step; a line that a kill cut short is left out."""
    path = output_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    steps = [json.loads(line) for line in lines if line.endswith("\n")]
    return [tuple(step[key] for key in ("step", "loss", "grad_norm", "learning_rate", "tokens")) for step in steps]


def draw(rng: random.Random, moment: str, calls: dict[str, int]) -> Kill:
    return Kill(moment, rng.randrange(calls[moment]), rng.random() < 0.5)


def assert_nothing_saved_is_lost(output_dir: Path) -> None:
    """What has the name of a checkpoint is whole, and there is one for each multiple of SAVE_STEPS that was passed."""
    checkpoints = find_checkpoints(output_dir)
    for path in checkpoints:
        verify(path)
    newest = int(checkpoints[0].name.partition("-")[2]) if checkpoints else 0
    last = max((step[0] for step in recorded(output_dir)), default=0)
    assert newest >= (last - 1) // SAVE_STEPS * SAVE_STEPS


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed >= ALWAYS else []) for seed in range(SEEDS)]
)
def test_a_killed_run_ends_as_if_it_had_not_been(files: Files, seed: int):
    rng = random.Random(seed)
    clipping = rng.random() < 0.5
    reference = files.reference(clipping)
    name, log = f"run-{seed}", files.directory / f"run-{seed}.log"
    out, words = files.directory / name, [*files.config(name, clipping), "--resume_from_checkpoint=auto"]

    moment = [*FIRST_RUN, ANY_TIME][(5 * seed) % (len(FIRST_RUN) + 1)]
    depths = [f"--window_depth={rng.choice([2, 3])}" for _ in range(3)]
    if moment == ANY_TIME:
        killed_after(start([*words, depths[0]], log), rng.uniform(0, LONGEST_SECONDS))
    else:
        kill = draw(rng, moment, reference.calls)
        assert finished(start([*words, depths[0]], log, kill)) == KILLED, log.read_text()
    assert_nothing_saved_is_lost(out)
    if rng.random() < 0.5:
        again = rng.choice(MOMENTS)  # may not come any more
        kill = draw(rng, again, {**reference.calls, "restore a unit": 6})
        assert finished(start([*words, depths[1]], log, kill)) in (0, KILLED), log.read_text()
        assert_nothing_saved_is_lost(out)

    assert finished(start([*words, depths[2]], log)) == 0, log.read_text()
    assert (out / "model.safetensors").read_bytes() == reference.weights
    assert recorded(out) == reference.steps
    left = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert left == {".lock"} and not list(out.glob("*.partial"))


def test_every_moment_comes_in_the_uninterrupted_run(files: Files):
    calls = files.reference(True).calls
    assert all(calls[moment] > 0 for moment in FIRST_RUN), calls
