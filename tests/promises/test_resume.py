"""Promise "nothing lost": killed at any moment and resumed, a run ends with the bits of one that was never killed.

Moments are drawn from a seed: before or after some call of loading, computing, updating, copying a state for a
checkpoint, saving, renaming, removing, reading from or writing to the disk tier, and at arbitrary instructions. Each
start has what other budgets would give it: another window, more or fewer blocks on disk, gradients that wait, forwards
that are kept, boundary activations on the host, copies for checkpoints. The resumed run is killed again in half of the
cases. A few seeds run always, 100 for each tier with `make kill-test`.
"""

import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from killed_runs import DISK_MOMENTS, FIRST_RUN, MOMENTS, Kill, finished, killed_after, start
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_config, write_records

from slideformer.storage.checkpoint import find_checkpoints, verify

SEEDS, ALWAYS = 100, 7
BLOCKS, UNITS = 3, 5
ANY_TIME = "any time"
LONGEST_SECONDS = 1.5  # a run takes about as long on an idle machine
SAVE_STEPS = 2
KILLED = -9
SETTINGS: dict[str, Any] = {
    "batch_size": 4, "micro_batch_size": 2, "max_steps": 7, "max_length": 24, "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine", "weight_decay": 0.1, "shuffle": True, "save_steps": SAVE_STEPS,
    "save_total_limit": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Of a run: which moments it has.

    Attributes:
        export: whether checkpoints have a model beside them; training stands still for these.
    """

    tier: str
    clipping: bool
    export: bool

    @property
    def moments(self) -> list[str]:
        without = [] if self.tier == "disk" else DISK_MOMENTS
        return [moment for moment in MOMENTS if moment not in without and (moment != "copy a unit" or not self.export)]

    def sizes(self, rng: random.Random) -> dict[str, int]:
        """What some budgets would lead to."""
        return {
            "window_depth": rng.choice([2, 3]),
            "disk_blocks": rng.randint(1, BLOCKS) if self.tier == "disk" else 0,
            "disk_weight_blocks": rng.randint(0, BLOCKS) if self.tier == "disk" else 0,
            "disk_boundaries": rng.randint(0, BLOCKS) if self.tier == "disk" else 0,
            "gradient_slots": BLOCKS if self.clipping else rng.randint(2, BLOCKS),
            "host_boundaries": rng.randint(0, BLOCKS),
            "kept": rng.randint(0, BLOCKS),
            "snapshot_units": rng.randint(0, UNITS),
        }


FIRST_SIZES = {  # every moment comes as often as can be, and always as often
    "disk_blocks": BLOCKS, "disk_weight_blocks": BLOCKS, "disk_boundaries": 0, "snapshot_units": UNITS,
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

    def config(self, name: str, kind: Kind) -> list[str]:
        out, path = self.directory / name, self.directory / f"{name}.yaml"
        settings = {**SETTINGS, "max_grad_norm": 0.5 if kind.clipping else None, "export_checkpoints": kind.export}
        budget = {"offload_dir": str(self.directory)}
        return ["train", str(write_config(path, self.model, self.data, out, budget=budget, **settings))]

    @cache  # noqa: B019  # as long as the module's fixture
    def reference(self, kind: Kind) -> Reference:
        name = f"whole-{kind.tier}-{kind.clipping}-{kind.export}"
        counts, log = self.directory / f"{name}.json", self.directory / f"{name}.log"
        sizes = FIRST_SIZES if kind.tier == "disk" else {**FIRST_SIZES, "disk_blocks": 0}
        assert finished(start(self.config(name, kind), log, counts=counts, sizes=sizes)) == 0, log.read_text()
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
    count = calls[moment]
    if moment == "read from the disk tier":
        count //= 2  # how often something is read ahead in vain depends on the moment
    return Kill(moment, rng.randrange(count), rng.random() < 0.5)


def assert_nothing_saved_is_lost(output_dir: Path, log: Path, kind: Kind) -> None:
    """What has the name of a checkpoint is whole, and there is one for each multiple of SAVE_STEPS that was passed, but
    for one that may be on its way; what was said to be saved is there."""
    checkpoints = find_checkpoints(output_dir)
    for path in checkpoints:
        verify(path)
    newest = int(checkpoints[0].name.partition("-")[2]) if checkpoints else 0
    last = max((step[0] for step in recorded(output_dir)), default=0)
    on_its_way = 0 if kind.export else SAVE_STEPS
    assert newest >= (last - 1) // SAVE_STEPS * SAVE_STEPS - on_its_way
    said = re.findall(r"^saved .*/checkpoint-(\d+) in", log.read_text() if log.exists() else "", re.MULTILINE)
    assert newest >= max(map(int, said), default=0)


def first_kill(rng: random.Random, kind: Kind, seed: int, calls: dict[str, int]) -> Kill | None:
    """Moments take turns; None is at any time."""
    moments = [*(moment for moment in kind.moments if moment in FIRST_RUN), ANY_TIME]
    moment = moments[(5 * seed) % len(moments)]
    return None if moment == ANY_TIME else draw(rng, moment, calls)


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed >= ALWAYS else []) for seed in range(SEEDS)]
)
def test_a_killed_run_ends_as_if_it_had_not_been(files: Files, seed: int, tier: str):
    rng = random.Random(f"{seed}, {tier}")
    kind = Kind(tier, clipping=rng.random() < 0.5, export=seed % 4 == 3)
    reference = files.reference(kind)
    name, log = f"run-{tier}-{seed}", files.directory / f"run-{tier}-{seed}.log"
    out, words = files.directory / name, [*files.config(name, kind), "--resume_from_checkpoint=auto"]

    kill = first_kill(rng, kind, seed, reference.calls)
    if kill is None:
        killed_after(start(words, log, sizes=kind.sizes(rng)), rng.uniform(0, LONGEST_SECONDS))
    else:
        sizes = {**kind.sizes(rng), **FIRST_SIZES} if tier == "disk" else {**kind.sizes(rng), "snapshot_units": UNITS}
        assert finished(start(words, log, kill, sizes=sizes)) == KILLED, log.read_text()
    assert_nothing_saved_is_lost(out, log, kind)
    if rng.random() < 0.5:
        again = draw(rng, rng.choice(kind.moments), {**reference.calls, "restore a unit": UNITS})  # may not come
        assert finished(start(words, log, again, sizes=kind.sizes(rng))) in (0, KILLED), log.read_text()
        assert_nothing_saved_is_lost(out, log, kind)

    assert finished(start(words, log, sizes=kind.sizes(rng))) == 0, log.read_text()
    assert (out / "model.safetensors").read_bytes() == reference.weights
    assert recorded(out) == reference.steps
    left = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert left == {".lock"} and not list(out.glob("*.partial"))


def test_every_moment_comes_in_the_uninterrupted_run(files: Files):
    kind = Kind("disk", clipping=True, export=False)
    calls = files.reference(kind).calls
    assert all(calls[moment] > 0 for moment in FIRST_RUN if moment in kind.moments), calls


def test_the_tier_and_the_export_do_not_change_the_result(files: Files):
    found = {files.reference(Kind(tier, True, export)).weights for tier in ("host", "disk") for export in (True, False)}
    assert len(found) == 1
