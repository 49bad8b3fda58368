"""Batch sizes side by side: each plan's bytes and seconds, or that it does not fit, and then why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_machines import machine
from made_up_plans import plan
from made_up_timings import timing
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_config, write_records

from slideformer.cli import main
from slideformer.errors import DoesNotFit
from slideformer.plan.batch_table import Plans, batch_sizes_as_json, render_batch_sizes
from slideformer.units import format_bytes


def plans(seconds: bool, gpu: str | None = "24GiB") -> Plans:
    found = {size: plan(gpu=gpu, batch_size=size) for size in (8, 32)}
    if seconds:
        found = {size: replace(each, timing=timing(size)) for size, each in found.items()}
    return {**found, 64: DoesNotFit("host memory needs 9 GiB", "batch_size: 40"), 128: DoesNotFit("needs more")}


def cells(text: str, size: int) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if line.split()[:1] == [str(size)])


def test_a_row_has_bytes_seconds_and_the_bound():
    made = plans(seconds=True)
    text, eight = render_batch_sizes(made), made[8]
    assert not isinstance(eight, DoesNotFit) and eight.timing
    parts = (format_bytes(eight.device_peak_bytes), format_bytes(eight.host_peak_bytes),
             f"{eight.timing.tokens_per_second:,.0f}")  # fmt: skip
    assert all(part in cells(text, 8) for part in parts)
    assert text.splitlines()[0].split()[:2] == ["batch_size", "GPU"] and "tokens/s" in text.splitlines()[0]


def test_what_does_not_fit_says_so_and_the_first_of_them_why():
    text = render_batch_sizes(plans(seconds=True))
    assert cells(text, 64) == "64 does not fit" and cells(text, 128) == "128 does not fit"
    assert text.endswith("batch_size 64: host memory needs 9 GiB\nhint: batch_size: 40")


@pytest.mark.parametrize("gpu", ["24GiB", None])
def test_without_rates_there_are_no_columns_of_seconds(gpu: str | None):
    header = render_batch_sizes(plans(seconds=False, gpu=gpu)).splitlines()[0]
    assert "tokens/s" not in header and "computed at once" in header and ("GPU" in header) == (gpu is not None)


def test_where_nothing_fits_there_is_still_a_table():
    assert cells(render_batch_sizes({8: DoesNotFit("too large")}), 8) == "8 does not fit"


def test_the_json_has_every_plan_or_its_error():
    fits, refused = (batch_sizes_as_json(plans(seconds=False))[k] for k in (0, 2))
    assert fits["batch_size"] == 8 and fits["plan"]["sizes"]["micro_batch_size"] == 8
    assert refused == {"batch_size": 64, "error": "host memory needs 9 GiB", "hint": "batch_size: 40"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    (directory / "machine.json").write_text(json.dumps(machine().as_json()))
    data = write_records(directory / "data.jsonl", make_records(10))
    model = save_tiny_model(directory / "model", "qwen3")
    return write_config(directory / "run.yaml", model, data, directory / "out", device="auto")


def test_one_command_compares_batch_sizes(config: Path, capsys: pytest.CaptureFixture[str]):
    words = ["plan", str(config), "--machine", str(config.parent / "machine.json"), "--batch-sizes", "2", "8"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "tokens/s" in text and cells(text, 2) and cells(text, 8)
    assert main([*words, "--json"]) == 0
    two, eight = json.loads(capsys.readouterr().out)
    assert [two["batch_size"], eight["batch_size"]] == [2, 8]
    assert 0 < two["plan"]["timing"]["tokens_per_second"] < eight["plan"]["timing"]["tokens_per_second"]


def test_a_batch_size_that_contradicts_a_setting_is_refused(config: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(config), "--micro_batch_size=4", "--batch-sizes", "2"]) == 1
    assert "micro_batch_size = 4 is larger than batch_size = 2" in capsys.readouterr().err
    assert main(["plan", str(config), "--batch-sizes", "2", "--plot", "x.png"]) == 1
    assert "--plot draws one plan" in capsys.readouterr().err
