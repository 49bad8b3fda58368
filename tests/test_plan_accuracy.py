"""`benchmarks/plan_accuracy.py`: what is read, what counts, what misses, and a grid that is measured."""

import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import plan_accuracy
import pytest
import torch
from accuracy_rows import ENOUGH, Pair, Row, asked, latest, name_of, read_rows
from accuracy_table import render, summarize
from made_up_machines import machine
from plan_accuracy import GRID, Configuration, chosen, conclude, main

from slideformer.bench.case import Case
from slideformer.bench.shapes import SHAPES
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.engine.operations import count_operations
from slideformer.models.architecture import Decoder
from slideformer.plan.pace import pace_of_full_steps
from slideformer.plan.plan import Workload
from slideformer.plan.planner import make_plan
from slideformer.plan.rates import read_machine
from slideformer.prepare.elsewhere import GPU_PROCESS_BYTES, memory_there, work_there
from slideformer.units import GIB

RESULTS = Path(__file__).parent.parent / "benchmarks/results"
PROBE = RESULTS / "2026-11-25-h200-probe-later.json"
DISK_BYTES = 55 * GIB


def row(sequences: int = 8, gpu: float = 1.0, host: float = 1.0, seconds: float | None = 1.0, **fields) -> Row:
    """Measured, each as a share of what was planned."""
    case = asked(asdict(Case("qwen3-4b", sequences, 1024, gpu_budget_bytes=8 * GIB)), disk=False)
    time = Pair(seconds, 1.0) if seconds else None
    return replace(Row(case, "", Pair(gpu * GIB, GIB), Pair(host * GIB, GIB), time, "compute"), **fields)


def written(path: Path, command: list[str], results: list[dict]) -> Path:
    path.write_text(json.dumps({"command": command, "results": results}))
    return path


def compared(**fields) -> dict:
    """A result of compare.py."""
    case = asdict(Case("qwen3-4b", 8, 1024))
    del case["rates"], case["offload_dir"]
    return {"system": "sliding", **case, "trace": None, **fields}


@pytest.mark.parametrize(
    ("measured", "misses"),
    [
        ({"gpu": 1.029, "host": 0.971, "seconds": 1.149}, []),
        ({"gpu": 1.031}, ["GPU +3.1%"]),
        ({"gpu": 0.969}, ["GPU -3.1%"]),
        ({"host": 1.031}, ["host +3.1%"]),
        ({"host": 0.969, "seconds": 0.849}, ["host -3.1%", "seconds -15.1%"]),
        ({"seconds": 1.151}, ["seconds +15.1%"]),
        ({"seconds": None}, ["seconds: no plan or no measurement"]),
    ],
)
def test_both_sides_of_the_plan_can_be_missed_and_nothing_passes_unmeasured(measured: dict, misses: list[str]):
    assert row(**measured).misses() == misses and row(**measured).holds == (not misses)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([row(n) for n in range(1, ENOUGH + 1)], 0),
        ([row(n) for n in range(1, ENOUGH)], 1),
        ([row(n) for n in range(1, ENOUGH)] + [row(1)], 1),
        ([row(n) for n in range(1, ENOUGH + 1)] + [row(99, seconds=1.2)], 1),
        ([row(n) for n in range(1, ENOUGH + 1)] + [Row(row(99).case, error="exit 1: OutOfMemoryError")], 1),
        ([row(1, gpu=1.1)] + [row(n) for n in range(1, ENOUGH + 1)], 0),
    ],
    ids=["enough", "too few", "one twice", "a miss", "a failure", "a miss that was measured again"],
)
def test_the_exit_code(rows: list[Row], code: int):
    assert conclude(rows) == code


def test_the_last_measurement_of_a_configuration_counts_and_the_earlier_ones_are_told():
    counted, replaced = latest([row(8, seconds=1.3), row(16), row(8, seconds=1.1), row(8, seconds=1.05)])
    assert [r.case.sequences for r in counted] == [8, 16] and counted[0].seconds == Pair(1.05, 1.0)
    assert "replaced by later measurements of the same: 2, of which 1 not within" in summarize(counted, replaced)


def test_how_a_configuration_was_measured_does_not_make_it_another():
    case = asdict(Case("tiny", 8, 1024, steps=3, warm_up=1, rates={}, matmul_flops=1.0, offload_dir="/here"))
    other = asdict(Case("tiny", 8, 1024, steps=4, device="cpu", offload_dir="/there"))
    assert asked(case, disk=True) == asked(other, disk=True) != asked(other, disk=False)
    assert asked({**case, "clipping": True}, disk=True) != asked(case, disk=True)


def test_a_name_says_what_was_asked_for():
    case = Case("tiny", 2, 16, gpu_budget_bytes=int(5.6 * GIB), host_budget_bytes=2 * GIB, clipping=True, kept=1)
    assert name_of(asked(asdict(case), disk=True)) == "tiny/2x16/5.6GiB/host2GiB/disk/clipping=True/kept=1"
    assert name_of(asked(asdict(Case("tiny", 2, 16)), disk=False)) == "tiny/2x16/none"


def test_of_a_comparison_the_sliding_engines_measured_steps_are_rows():
    results = json.loads((RESULTS / "2026-11-25-h200-compare-table.json").read_text())["results"]
    planned = [result for result in results if result["system"] == "sliding" and "error" not in result]
    rows = read_rows(RESULTS / "2026-11-25-h200-compare-table.json")
    assert [r.case.sequences for r in rows] == [result["sequences"] for result in planned] and len(rows) == 8
    first = rows[0]
    assert first.gpu == Pair(84939223040, 84973489672) and first.host == Pair(7156424704, 7136186376)
    assert first.seconds and first.seconds.deviation == pytest.approx(0.051, abs=0.001)
    assert (first.bound, first.on_disk, first.source) == ("compute", 0, "2026-11-25-h200-compare-table")


def test_of_a_comparisons_errors_only_those_for_want_of_memory_are_rows(tmp_path: Path):
    errors = ["not done after 4 s", "exit 1: torch.OutOfMemoryError: CUDA out of memory", "exit -9: "]
    results = [compared(error=error) for error in errors] + [compared(system="resident", error=errors[1])]
    disk, none = (
        read_rows(written(tmp_path / "out.json", ["benchmarks/compare.py", *words], results))
        for words in (["--offload-dir", "here"], ["--largest-batch"])
    )
    assert [r.error for r in disk] == errors[1:] and all(r.out_of_memory and r.case.offload_dir for r in disk)
    assert none == []


def test_a_step_beside_the_gpu_alone_is_a_row():
    (found,) = read_rows(RESULTS / "2026-11-25-h200-gpu-alone-8b.json")
    assert name_of(found.case) == "llama-3.1-8b/32x1024/24GiB/host120GiB" and found.holds
    assert found.seconds == Pair(3.1585541050000074, 3.351493297324212) and found.bound is None
    assert found.gpu and found.gpu.planned == pytest.approx(22.51 * GIB, rel=1e-3)


@pytest.mark.parametrize("file", ["2026-11-25-h200-step-qwen3-4b.json", "2026-11-25-h200-families.json", "none.json"])
def test_another_file_is_refused(file: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["--only", "--read", str(RESULTS / file)])
    assert end.value.code == 2 and f"{file}: not a result of plan_accuracy.py, compare.py" in capsys.readouterr().err


def test_the_table_and_the_summary_name_what_misses():
    failed = Row(row(32).case, error="exit 1: [torch.OutOfMemoryError] out of memory\nhint: more")
    rows = [row(8, gpu=1.01, seconds=1.2, on_disk=3), row(16, host=0.99, source="a-file"), failed]
    lines = render(rows).splitlines()
    numbers = "1.01 1.00 +1.0% 1.00 1.00 +0.0% 1.200 1.000 +20.0%! compute 3"
    assert " ".join(lines[1].split()) == f"qwen3-4b/8x1024/8GiB {numbers}"
    assert lines[2].endswith("a-file") and lines[3].endswith("[torch.OutOfMemoryError] out of memory")
    summary = summarize(rows, not_measured=[row(64).case])
    assert "3 configurations (fewer than 20): 1 within 3% of the plan's peaks and 15% of its seconds" in summary
    assert "1 not, 1 failed, 1 of them out of memory" in summary
    assert "GPU peak +0.0% to +1.0%; host peak -1.0% to +0.0%; seconds +0.0% to +20.0%" in summary
    assert "not within: qwen3-4b/8x1024/8GiB (seconds +20.0%)\nfailed: qwen3-4b/32x1024/8GiB" in summary
    assert "GPU budgets 8 GiB; 1024 to 1024 tokens a sequence; 1 with something on disk" in summary
    assert summary.endswith("of the grid, not measured: qwen3-4b/64x1024/8GiB")


def test_words_choose_from_the_grid():
    assert chosen(None) == list(GRID) and chosen([]) == []
    assert chosen(["3", "1-2", name_of(GRID[4].asked)]) == [*GRID[:3], GRID[4]]
    assert chosen(["*/disk"]) == [c for c in GRID if c.disk]
    for word in ("0", "5-3", "1-999", "nothing"):
        with pytest.raises(ValueError, match="names no configuration"):
            chosen([word])


TINY = (
    Configuration("tiny", 2, 16),
    Configuration("tiny", 2, 16, host="1MiB"),
    Configuration("tiny", 4, 16, host="16GiB", disk=True),
)


def test_a_grid_is_measured_here_and_read_again(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(plan_accuracy, "GRID", TINY)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rates, out = tmp_path / "rates.json", tmp_path / "out.json"
    rates.write_text(json.dumps(machine(gpu=False).as_json()))
    monkeypatch.setattr("sys.argv", ["plan_accuracy.py"])
    words = ["--rates", str(rates), "--steps", "1", "--json", str(out)]
    assert main([*words, "--offload-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    whole = json.loads(out.read_text())
    assert whole["rates"]["name"] == "Made-up CPU" and [r["disk"] for r in whole["results"]] == [False, False, True]
    assert all("rates" not in result and "offload_dir" not in result for result in whole["results"])
    first, failed, disk = read_rows(out)
    assert [r.case for r in (first, failed, disk)] == [configuration.asked for configuration in TINY]
    assert first.host and 0.5 < first.host.measured / first.host.planned < 2 and first.seconds and first.bound
    assert first.misses()[0] == "GPU: no plan or no measurement"
    assert failed.error and failed.error.startswith("host memory needs") and "tiny/2x16/none/host0" in printed
    assert disk.error is None and disk.seconds
    assert main(["--only", "--read", str(out)]) == 1
    assert capsys.readouterr().out.splitlines()[-4:] == printed.splitlines()[-4:]


def test_what_time_does_not_suffice_for_is_no_result(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(plan_accuracy, "GRID", TINY[:1])
    out = tmp_path / "out.json"
    assert main(["--stop-after", "0", "--json", str(out)]) == 1 and not out.exists()
    printed = capsys.readouterr().out
    assert "tiny/2x16/none: not measured, 0 s were over" in printed
    assert "0 configurations" in printed and printed.endswith("of the grid, not measured: tiny/2x16/none\n")


def test_a_directory_is_needed_for_what_goes_to_disk(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--only", "*/disk"])
    assert "--offload-dir is needed for qwen3-0.6b/" in capsys.readouterr().err


def test_the_grid_covers_what_is_promised():
    cases = [configuration.asked for configuration in GRID]
    assert len(set(cases)) == len(GRID) >= ENOUGH
    assert {"qwen3-0.6b", "qwen3-4b", "llama-3.1-8b", "qwen3-14b"} == {case.model for case in cases}
    assert {case.gpu_budget_bytes for case in cases} == {8 * GIB, 24 * GIB, 48 * GIB, None}
    assert (min(case.length for case in cases), max(case.length for case in cases)) == (512, 32768)


@cache
def decoder_of(shape: str) -> Decoder:
    return Decoder(SHAPES[shape](), torch.device("cpu"), "sdpa")


@pytest.mark.slow  # the planner's whole search, for each
@pytest.mark.parametrize("configuration", GRID, ids=lambda c: name_of(c.asked))
def test_every_configuration_fits_an_h200_and_uses_the_disk_if_it_may(configuration: Configuration):
    """As estimated without one: `work_there`."""
    rates, case, dtype = read_machine(PROBE), configuration.asked, torch.bfloat16
    decoder, there = decoder_of(case.model), memory_there(rates)
    workload = Workload(case.sequences, case.length, case.clipping, optimizer_state=case.optimizer_state)
    operations = count_operations(decoder, dtype, fused=True)
    plan = make_plan(
        model_sizes(decoder), work_there(measure_work(decoder, case.length, dtype), decoder, dtype), workload, dtype,
        case.host_budget_bytes or there.host_bytes, there.allocatable_bytes(case.gpu_budget_bytes), GPU_PROCESS_BYTES,
        DISK_BYTES if configuration.disk else None,
        pace_of_full_steps(operations, rates, case.sequences, case.length, dtype, case.clipping),
    )  # fmt: skip
    assert (plan.sizes.disk_blocks > 0) == configuration.disk
    assert plan.host_peak_bytes < 0.95 * there.host_bytes
