"""A plan for a machine that is not here takes memory, budgets and type of computation from its record."""

import json
from pathlib import Path

import pytest
import torch
from made_up_machines import machine
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_config, write_records

from slideformer.cli import main
from slideformer.errors import ConfigError
from slideformer.plan import rates
from slideformer.plan.rates import MachineRates, store_rates
from slideformer.plan.table import render
from slideformer.prepare.elsewhere import dtype_there, memory_there
from slideformer.prepare.job import plan_for
from slideformer.settings.config import load_config
from slideformer.units import GIB


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    data = write_records(directory / "data.jsonl", make_records(10))
    model = save_tiny_model(directory / "model", "qwen3")
    return write_config_of(directory, model, data)


def write_config_of(directory: Path, model: Path, data: Path) -> Path:
    path = directory / "run.yaml"
    write_config(path, model, data, directory / "out", batch_size=4, device="auto", num_train_epochs=2)
    return path


def written(directory: Path, record: MachineRates) -> str:
    (directory / "machine.json").write_text(json.dumps(record.as_json()))
    return str(directory / "machine.json")


def test_a_gpu_computes_in_bf16_and_gives_its_memory(config: Path):
    plan = plan_for(load_config(config), machine())
    assert plan.device_budget_bytes and 0.9 * 24 * GIB < plan.device_budget_bytes < 24 * GIB
    assert 0.9 * 64 * GIB < plan.host_budget_bytes < 64 * GIB
    assert plan.timing and plan.timing.machine == "Made-up GPU" and plan.timing.steps == 6


def test_a_cpu_computes_in_host_memory(config: Path):
    plan = plan_for(load_config(config), machine(gpu=False))
    assert plan.device_budget_bytes is None and "computation" in plan.host
    assert plan.timing and plan.timing.seconds == pytest.approx(sum(plan.timing.lanes.values()))


def test_budgets_of_the_config_win(config: Path):
    plan = plan_for(load_config(config, ["--budget.gpu=8GiB", "--budget.host=16GiB"]), machine())
    assert plan.host_budget_bytes == 16 * GIB and plan.device_budget_bytes and plan.device_budget_bytes < 8 * GIB


def test_seconds_choose_the_plan_and_the_config_pins_it(config: Path):
    chosen, slid = (plan_for(load_config(config, pins), machine()) for pins in ([], ["--resident=0", "--kept=1"]))
    assert chosen.sizes.resident_ends and chosen.sizes.resident and (slid.sizes.resident, slid.sizes.kept) == (0, 1)
    assert chosen.timing and slid.timing and chosen.timing.seconds < slid.timing.seconds
    assert "updated on the GPU, where their state stays" in render(chosen)


def test_the_config_pins_what_the_plan_shows_as_its_sizes(config: Path, tmp_path: Path):
    pins = {"host_boundaries": 1, "kept_outputs": 1, "disk_blocks": 1, "gradient_slots": 2, "resident_ends": True}
    words = [f"--{name}={str(value).lower()}" for name, value in pins.items()]
    given = ["--max_grad_norm=null", "--resident=0", f"--budget.offload_dir={tmp_path}", "--budget.disk=1TiB", *words]
    plan = plan_for(load_config(config, given), machine())
    assert {name: getattr(plan.sizes, name) for name in pins} == pins


def test_the_type_is_the_machine_s_or_the_config_s():
    assert dtype_there(machine(), "auto", "auto") == torch.bfloat16
    assert dtype_there(machine(gpu=False), "auto", "auto") == torch.float32
    assert dtype_there(machine(), "cuda", "fp32") == torch.float32
    assert memory_there(machine(gpu=False)).device_bytes is None


@pytest.mark.parametrize(("device", "gpu"), [("cpu", True), ("cuda", False)])
def test_a_machine_without_the_device_is_refused(device: str, gpu: bool):
    with pytest.raises(ConfigError, match=f"device: {device}, but Made-up"):
        dtype_there(machine(gpu), device, "auto")


def test_plan_shows_seconds_and_its_json_has_them(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = written(tmp_path, machine())
    assert main(["plan", str(config), "--machine", file]) == 0
    shown = capsys.readouterr().out
    assert "predicted for Made-up GPU" in shown and "(the bound)" in shown and "slideformer probe" not in shown
    assert main(["plan", str(config), "--machine", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["timing"]["steps"] == 6


def test_a_type_that_was_not_measured_leaves_the_seconds_out(config: Path):
    record = machine().as_json()
    del record["compute"]["matmul_flops"]["bf16"]
    other = rates.TypeAdapter(MachineRates).validate_python(record)
    assert plan_for(load_config(config), other).timing is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_train_begins_and_ends_with_seconds_where_this_machine_was_probed(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(rates, "cache_file", lambda: tmp_path / "machine.json")
    assert main(["train", str(config), f"--output_dir={tmp_path / 'a'}", "--device=cpu"]) == 0
    unknown = capsys.readouterr().out
    assert "`slideformer probe` measures them" in unknown and "step: predicted" not in unknown
    store_rates(machine(gpu=False))
    assert main(["train", str(config), f"--output_dir={tmp_path / 'b'}", "--device=cpu"]) == 0
    known = capsys.readouterr().out
    assert "predicted for Made-up CPU" in known and "step: predicted " in known
    assert json.loads((tmp_path / "b/run.json").read_text())["plan"]["timing"]["bound"]
    store_rates(machine())  # of a GPU that is not there any more
    assert plan_for(load_config(config)).timing is None
