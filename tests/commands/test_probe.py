"""`slideformer probe` measures once, and again only when asked."""

import json
from pathlib import Path

import pytest
from made_up_machines import machine

from slideformer.cli import main
from slideformer.plan import probe, rates


def test_a_second_probe_reads_what_the_first_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    measured: list[Path] = []
    monkeypatch.setattr(rates, "cache_file", lambda: tmp_path / "machine.json")
    monkeypatch.setattr(probe, "probe", lambda directory, call_seconds: measured.append(directory) or machine())
    assert main(["probe", "--directory", str(tmp_path)]) == 0 and main(["probe"]) == 0
    assert measured == [tmp_path] and "Made-up GPU" in capsys.readouterr().out
    assert main(["probe", "--fresh", "--json"]) == 0 and len(measured) == 2
    assert json.loads(capsys.readouterr().out) == machine().as_json()
