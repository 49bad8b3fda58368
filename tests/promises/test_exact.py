"""Promise "Exact": 30 steps of the program equal a plain PyTorch loop; placement and timing do not change a bit.

Against PyTorch every model meets each window depth, each number of micro-batches, clipping and none, in four of their
twelve combinations (eight over all models). Bit for bit, every choice is compared alone with the same base.
"""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, save_tiny_model, tiny_model
from tiny_runs import (
    SIZES,
    Run,
    States,
    Subject,
    batch_at,
    differences,
    hyper_at,
    make_records,
    plain_training,
    read_run,
    states_of,
    subject,
    tiny_engine,
    train,
    write_config,
    write_records,
)

BLOCKS = 5
STEPS = 30
BATCH_SIZE = 4
RECORDS = make_records(21)  # six steps an epoch, the last with one record
BITES = 0.5  # below every gradient norm of these runs
TOLERANCE = 1e-5

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": BLOCKS},
    "qwen3": {"num_hidden_layers": BLOCKS},  # tied
    "gemma2": {"num_hidden_layers": BLOCKS},  # tied; soft-caps, scaled embedding, alternating masks
    "gpt2": {"n_layer": BLOCKS},  # tied; positions, biases, Conv1D
}

# (clipping, micro-batches, window depth)
COMBINATIONS = [
    [(True, 1, 2), (False, 4, 3), (True, 4, BLOCKS), (False, 1, BLOCKS)],
    [(False, 1, 2), (True, 4, 3), (False, 4, BLOCKS), (True, 1, BLOCKS)],
]
CASES = [(name, *combination) for k, name in enumerate(MODELS) for combination in COMBINATIONS[k % 2]]


def settings(clipping: bool) -> dict[str, Any]:
    return {
        "max_steps": STEPS,
        "batch_size": BATCH_SIZE,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine" if clipping else "linear",
        "warmup_steps": 4,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,  # gradients that are only rounding noise (key biases) must not decide
        "max_grad_norm": BITES if clipping else None,
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(root / name, name, **changes) for name, changes in MODELS.items()}


@cache
def plain(model: Path, clipping: bool) -> Run:
    return plain_training(model, RECORDS, settings(clipping))


def assert_equal_within_tolerance(run: Run, reference: Run) -> None:
    assert len(run.losses) == STEPS
    assert run.losses == pytest.approx(reference.losses, rel=TOLERANCE)
    assert run.norms == pytest.approx(reference.norms, rel=1e-4)
    assert run.weights.keys() == reference.weights.keys()
    for name, value in run.weights.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, reference.weights[name], rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize(("name", "clipping", "micro_batches", "depth"), CASES)
def test_thirty_steps_equal_plain_pytorch(
    models: dict[str, Path], tmp_path: Path, name: str, clipping: bool, micro_batches: int, depth: int
):
    reference = plain(models[name], clipping)
    assert not clipping or min(reference.norms) > BITES
    config = write_config(
        tmp_path / "run.yaml",
        models[name],
        write_records(tmp_path / "data.jsonl", RECORDS),
        tmp_path / "out",
        micro_batch_size=BATCH_SIZE // micro_batches,
        window_depth=depth,
        **settings(clipping),
    )
    assert_equal_within_tolerance(train(config, tmp_path / "out"), reference)


def test_the_program_in_its_own_process_equals_plain_pytorch(models: dict[str, Path], tmp_path: Path):
    data = write_records(tmp_path / "data.jsonl", RECORDS)
    config = write_config(tmp_path / "run.yaml", models["qwen3"], data, tmp_path / "out", **settings(clipping=True))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "slideformer", "train", str(config), "--micro_batch_size", "2"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
    assert_equal_within_tolerance(read_run(tmp_path / "out"), plain(models["qwen3"], True))


# ---- bit for bit

BASE = replace(SIZES, window_depth=2, gradient_slots=BLOCKS)
NEVER_REACHED = 1e9
PLACEMENTS: dict[str, dict[str, int]] = {
    "window of 3": {"window_depth": 3},
    "all in the window": {"window_depth": BLOCKS},
    "two gradient slots": {"gradient_slots": 2},
    "two boundaries in host memory": {"host_boundaries": 2},
    "all boundaries in host memory": {"host_boundaries": BLOCKS},
    "one layer kept whole": {"kept": 1, "host_boundaries": BLOCKS},
    "all layers kept whole": {"kept": BLOCKS, "window_depth": 3},
    "expensive outputs kept": {"kept_outputs": BLOCKS, "host_boundaries": BLOCKS},
    "one layer of each level": {"kept": 1, "kept_outputs": 1},
    "all expensive outputs in host memory": {"host_outputs": 99, "host_output_bytes": 2**20, "host_boundaries": 2},
    "some in host memory, others kept": {"kept_outputs": 1, "host_outputs": 3, "host_output_bytes": 2**20},
    "everything at once": {"window_depth": 3, "gradient_slots": 1, "host_boundaries": 3, "kept": 2},
}


@cache
def deep(family: str) -> Subject:
    changes = {"n_layer": BLOCKS} if family == "gpt2" else {"num_hidden_layers": BLOCKS}
    return subject(tiny_model(family, **changes))


def run_steps(family: str, max_norm: float | None, steps: int = 4, **sizes: int) -> tuple[list[float], States]:
    with tiny_engine(deep(family), replace(BASE, **sizes)) as engine:
        results = [engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm) for k in range(steps)]
        engine.drain()
        return [result.grad_norm for result in results], states_of(engine)


@cache
def base(family: str, max_norm: float | None) -> tuple[list[float], States]:
    return run_steps(family, max_norm)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", MODELS)
def test_placement_does_not_change_a_bit(family: str, placement: str):
    norms, states = run_steps(family, None, **PLACEMENTS[placement])
    assert norms == base(family, None)[0]
    assert differences(states, base(family, None)[1]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_threshold_never_reached_does_not_change_a_bit(family: str):
    norms, states = run_steps(family, NEVER_REACHED, window_depth=3, host_boundaries=1)
    assert norms == base(family, None)[0]
    assert differences(states, base(family, None)[1]) == []


@pytest.mark.parametrize("placement", [name for name in PLACEMENTS if "gradient_slots" not in PLACEMENTS[name]])
def test_placement_does_not_change_a_bit_of_clipped_training(placement: str):
    norms, states = run_steps("qwen3", BITES, **PLACEMENTS[placement])
    assert norms == base("qwen3", BITES)[0]
    assert differences(states, base("qwen3", BITES)[1]) == []
    assert differences(states, base("qwen3", None)[1]) == list(states)  # and clipping did change everything
