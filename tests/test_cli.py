"""The commands as a person types them; the trainer behind them is a stand-in."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import slideformer
from slideformer.cli import main
from slideformer.errors import DoesNotFit
from slideformer.settings.config import Config


@dataclass(frozen=True)
class FakePlan:
    gpu_bytes: int
    timing = "known"  # no field: it is not printed

    def as_json(self) -> dict[str, int]:
        return asdict(self)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the commands asked of a stand-in for the trainer and the demo."""
    made: list[tuple[str, Any]] = []

    class FakeTrainer:
        def __init__(self, config: Config):
            made.append(("trainer", config))

        def train(self) -> None:
            made.append(("train", None))

    trainer: Any = ModuleType("slideformer.run.trainer")
    trainer.Trainer = FakeTrainer
    job: Any = ModuleType("slideformer.prepare.job")
    job.plan_for = lambda config, machine: made.append(("plan", config)) or FakePlan(gpu_bytes=7)
    reading: Any = ModuleType("slideformer.prepare.reading")
    reading.show_data = lambda *arguments: made.append(("data", arguments))
    saving: Any = ModuleType("slideformer.run.saving")
    saving.export = lambda *arguments: made.append(("export", arguments))
    demo: Any = ModuleType("slideformer.demo.main")
    demo.run = lambda **arguments: made.append(("demo", arguments))
    for module in (trainer, job, reading, saving, demo):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("slideformer.plan.table.render", lambda plan: "a table")
    return made


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    file = tmp_path / "run.yaml"
    file.write_text("model: m\noutput_dir: out\ndata: {path: x.jsonl}\n")
    return str(file)


def raise_from_plan(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def plan_for(config: Config, machine: object) -> None:
        raise error

    job: Any = ModuleType("slideformer.prepare.job")
    job.plan_for = plan_for
    monkeypatch.setitem(sys.modules, "slideformer.prepare.job", job)


def test_train_builds_a_trainer_from_file_and_overrides(calls: list, config_file: str):
    assert main(["train", config_file, "--max_steps", "3", "--learning_rate=-0"]) == 0
    assert [name for name, _ in calls] == ["trainer", "train"]
    assert calls[0][1].max_steps == 3


def test_plan_prints_its_table(calls: list, config_file: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", config_file, "--budget.gpu=24GiB"]) == 0
    assert capsys.readouterr().out == "a table\n"
    assert calls[0][1].budget.gpu == "24GiB"


@pytest.mark.parametrize("position", [1, 2, 4])
def test_plan_prints_json_wherever_the_flag_stands(
    calls: list, config_file: str, capsys: pytest.CaptureFixture[str], position: int
):
    words = ["plan", config_file, "--seed", "3"]
    assert main([*words[:position], "--json", *words[position:]]) == 0
    assert json.loads(capsys.readouterr().out) == {"gpu_bytes": 7}


def test_data_passes_config_and_samples(calls: list, config_file: str):
    assert main(["data", config_file, "--samples", "7", "--max_length=9"]) == 0
    ((name, (config, samples)),) = calls
    assert (name, config.max_length, samples) == ("data", 9, 7)


def test_export_passes_paths_and_type(calls: list):
    assert main(["export", "run", "model"]) == 0
    assert main(["export", "run", "model", "--dtype", "fp32"]) == 0
    assert calls == [("export", (Path("run"), Path("model"), dtype)) for dtype in ("bf16", "fp32")]


def test_demo_passes_the_device(calls: list):
    assert main(["demo", "--device", "cpu"]) == 0
    assert calls == [("demo", {"device": "cpu"})]


def test_report_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    assert main(["report", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "other.html")]) == 0
    written = [tmp_path / "report.html", tmp_path / "other.html"]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    assert all(path.read_text().startswith("<!doctype html>") for path in written)


def test_an_unknown_key_is_two_lines_on_stderr(calls: list, config_file: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", config_file, "--learning_rat", "3"]) == 1
    output = capsys.readouterr()
    assert output.err == "error: command line: unknown setting learning_rat\nhint: did you mean learning_rate?\n"
    assert output.out == "" and calls == []


def test_a_missing_config_file(calls: list, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "none.yaml"]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read none.yaml: No such file or directory\nhint: ")


def test_an_unknown_option_of_export_is_refused(calls: list, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "run", "model", "--dtyp", "fp32"]) == 1
    assert "'--dtyp' is not known" in capsys.readouterr().err and calls == []


def test_errors_of_the_trainer_are_told_not_traced(
    monkeypatch: pytest.MonkeyPatch, config_file: str, capsys: pytest.CaptureFixture[str]
):
    raise_from_plan(monkeypatch, DoesNotFit("needs 30.0 GiB of 24.0 GiB", hint="set micro_batch_size: 2"))
    assert main(["plan", config_file]) == 1
    assert capsys.readouterr().err == "error: needs 30.0 GiB of 24.0 GiB\nhint: set micro_batch_size: 2\n"


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, config_file: str):
    raise_from_plan(monkeypatch, DoesNotFit("needs 30.0 GiB"))
    monkeypatch.setenv("SLIDEFORMER_TRACEBACK", "1")
    with pytest.raises(DoesNotFit):
        main(["plan", config_file])


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, config_file: str):
    raise_from_plan(monkeypatch, KeyboardInterrupt())
    assert main(["plan", config_file]) == 130


def test_a_reader_that_has_seen_enough_ends_the_program_quietly():
    script = """
import sys
from slideformer.cli import main
from slideformer.commands import training

def print_forever(*_):
    while True:
        print("a table")

training.load_config = print_forever
sys.exit(main(["plan", "run.yaml"]))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout and program.stderr
        program.stdout.read(100)
        program.stdout.close()
        assert (program.wait(timeout=30), program.stderr.read()) == (141, b"")


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "train" in capsys.readouterr().err


def test_help_lists_every_setting_within_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and max(map(len, text.splitlines())) <= 80
    for words in ("learning_rate        1e-05 ", "budget.gpu           null ", "output_dir           required "):
        assert words in text


def test_the_module_is_the_program_and_help_is_quick():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "slideformer", "--help"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert time.monotonic() - start < 5  # 0.4 s alone; a loaded machine may take longer
    assert result.stdout.startswith("usage: slideformer")
    heavy = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()} & {"torch", "transformers", "rich"}
    assert not heavy


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"slideformer {slideformer.__version__}\n")
    assert slideformer.__version__ == version("slideformer")
