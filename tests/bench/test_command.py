"""`slideformer bench`: a process a case, a table, a file."""

import json

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
