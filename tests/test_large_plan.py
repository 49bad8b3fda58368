"""123B parameters on a card of 24 GiB, beside 128 GiB of host memory and 2 TiB of disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up_machines import machine
from tiny_runs import make_records, write_config, write_records

from slideformer.bench.shapes import SHAPES
from slideformer.cli import main
from slideformer.engine.measure import model_sizes
from slideformer.engine.operations import count_operations
from slideformer.errors import DoesNotFit
from slideformer.models.architecture import Decoder
from slideformer.plan.footprint import Work
from slideformer.plan.machine import Machine
from slideformer.plan.pace import Pace, pace_of_full_steps
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.prepare.elsewhere import GPU_PROCESS_BYTES
from slideformer.units import GIB

SHAPE, BLOCKS = SHAPES["mistral-large-123b"], 88
SEQUENCES, LENGTH = 8, 1024
# As `measure_work` estimates for sequences of 1,024 tokens; it takes seconds and gigabytes, which the slow test spends.
WORK = Work(983_318_528, 2_768_289_792, 532_480, 65_536, 0, kept_bytes=491_659_264, kept_outputs_bytes=197_525_504)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(SHAPE(), torch.device("cpu"), "sdpa")


def plan(decoder: Decoder, disk_bytes: int | None, pace: Pace | None = None) -> Plan:
    gpu = Machine("", 0, 24 * GIB).allocatable_bytes(24 * GIB)
    workload = Workload(SEQUENCES, LENGTH, clipping=False)
    host = 128 * GIB
    return make_plan(
        model_sizes(decoder), WORK, workload, torch.bfloat16, host, gpu, GPU_PROCESS_BYTES, disk_bytes, pace
    )  # fmt: skip


@pytest.mark.parametrize("paced", [False, True])
def test_it_plans(decoder: Decoder, paced: bool):
    pace = None
    if paced:
        operations = count_operations(decoder, torch.bfloat16, fused=True)
        pace = pace_of_full_steps(operations, machine(), SEQUENCES, LENGTH, torch.bfloat16, clipping=False)
        assert pace is not None
    chosen = plan(decoder, 2048 * GIB, pace)
    assert chosen.model.parameters == pytest.approx(122.6e9, rel=0.001)
    assert chosen.fits_device and chosen.fits_host and chosen.fits_disk
    assert chosen.sizes.disk_blocks == BLOCKS and 0 < chosen.sizes.disk_weight_blocks <= BLOCKS
    assert 1.1 * 1024 * GIB < chosen.disk_peak_bytes < 1.4 * 1024 * GIB


def test_without_a_disk_the_refusal_says_which_one_would_do(decoder: Decoder):
    with pytest.raises(DoesNotFit, match=r"host memory needs 1\.4 TiB") as caught:
        plan(decoder, None)
    assert "budget.offload_dir: a directory on a fast local disk with" in caught.value.hint


@pytest.mark.slow  # about 4 GiB: a block's weights, to count what autograd saves
def test_the_command_shows_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "model").mkdir()
    SHAPE().save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "architectures": ["MistralForCausalLM"]}))
    data = write_records(tmp_path / "data.jsonl", make_records(16, lengths=(LENGTH, LENGTH)))
    budget = {"offload_dir": str(tmp_path), "disk": "2048GiB"}
    settings = {"max_grad_norm": None, "batch_size": SEQUENCES, "max_length": LENGTH, "device": "auto"}
    path = write_config(tmp_path / "run.yaml", tmp_path / "model", data, tmp_path / "out", **settings, budget=budget)
    there = machine()
    there = replace(there, memory=replace(there.memory, host_free_bytes=128 * GIB))
    (tmp_path / "machine.json").write_text(json.dumps(there.as_json()))
    assert main(["plan", str(path), "--machine", str(tmp_path / "machine.json")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "plan: 123B parameters in 88 blocks" in shown and "disk_blocks 88/88" in shown
    assert "weights" in shown and "from and to the disk (the bound)" in shown
