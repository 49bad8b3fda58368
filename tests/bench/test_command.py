"""`slideformer bench`: a process a case, a table, a file."""

import json
from pathlib import Path

import pytest

from slideformer.cli import main

ARGUMENTS = ["--length", "16", "--steps", "1", "--warm-up", "1", "--device", "cpu", "--threads", "1"]


def test_bench_measures_every_case(tmp_path, capsys):
    path = tmp_path / "out.json"
    assert main(["bench", "tiny", *ARGUMENTS, "--sequences", "1", "2", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "1 x 16" in printed and "2 x 16" in printed and "MFU" in printed
    results = json.loads(path.read_text())["results"]
    assert [result["sequences"] for result in results] == [1, 2]
    assert all(result["tokens_per_second"] > 0 and result["mfu"] > 0 for result in results)
    assert all(result["host_peak_bytes"] > 0 and result["host_planned_bytes"] > 0 for result in results)


def test_a_failed_case_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("slideformer.bench.command.run_fresh", lambda command, timeout: {"error": "exit 1: broken"})
    assert main(["bench", "tiny", *ARGUMENTS, "--sequences", "1"]) == 1
    captured = capsys.readouterr()
    assert "1 x 16 -: exit 1: broken" in captured.out and "no case could be measured" in captured.err


def test_budgets_and_pins_reach_the_plan(tmp_path, capsys):
    out, pins = tmp_path / "out.json", ["--disk-blocks", "2", "--kept", "1", "--micro-batch-size", "1"]
    budgets = ["--host-budget", "16GiB", "--offload-dir", str(tmp_path), "--disk-budget", "1GiB"]
    words = [*ARGUMENTS, "--sequences", "2", *pins, *budgets, "--optimizer-state", "bf16", "--json", str(out)]
    assert main(["bench", "tiny", *words]) == 0
    (result,) = json.loads(out.read_text())["results"]
    sizes = result["plan"]
    assert (sizes["disk_blocks"], sizes["kept"], sizes["micro_batch_size"]) == (2, 1, 1)
    assert sizes["optimizer_state"] == "bf16" and result["host_budget_bytes"] == 16 * 2**30
    assert result["disk_budget_bytes"] == 2**30


def test_a_pin_that_is_not_possible_is_said(capsys):
    assert main(["trace", "tiny", *ARGUMENTS, "--disk-blocks", "2"]) == 1
    assert "disk_blocks: 2, but there is no disk for them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--window-depth", "1", "'1' is not a whole number from 2 on"),
        ("--resident-ends", "maybe", "'maybe' is neither true nor false"),
        ("--gpu-budget", "24GB iB", "'24GB iB' is not a size"),
    ],
)
def test_a_value_that_is_none_is_told_as_such(option, value, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "tiny", option, value])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_case_that_does_not_fit_says_what_would(tmp_path, capsys):
    words = [*ARGUMENTS, "--sequences", "2", "--host-budget", "1MiB"]
    assert main(["bench", "tiny", *words]) == 1
    printed = capsys.readouterr().out
    assert "2 x 16 -: host memory needs" in printed and "budget.host: " in printed and "Traceback" not in printed


def test_an_unknown_model_is_told_with_the_shapes(capsys):
    assert main(["trace", str(Path("no") / "such" / "model"), *ARGUMENTS]) == 1
    assert "or a shape: tiny, " in capsys.readouterr().err
