"""The report of a run that happened: what the trainer writes is what the report reads, none of it is left out."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model, save_tiny_tokenizer
from tiny_runs import make_records, train, write_config, write_records

from slideformer.listeners import metrics
from slideformer.listeners.run_directory import read_log
from slideformer.report import run_data
from slideformer.report.answers import answers
from slideformer.report.page import write_report

PROMPTS = ["w5 w6 w7", "w9"]
SETTINGS: dict[str, Any] = {
    "packing": True, "batch_size": 2, "max_length": 48, "learning_rate": 1e-2, "max_steps": 4, "eval_steps": 2,
    "eval_on_start": True, "sample_prompts": PROMPTS, "sample_max_new_tokens": 6, "frozen": ["norm"],
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output_dir of a finished run with everything in it."""
    root = tmp_path_factory.mktemp("run")
    model = save_tiny_tokenizer(save_tiny_model(root / "model", "qwen3"))
    data, held_out = (write_records(root / f"{n}.jsonl", make_records(n, seed=n)) for n in (20, 7))
    config = write_config(root / "run.yaml", model, data, root / "out", eval_data={"path": str(held_out)}, **SETTINGS)
    train(config, root / "out")
    return root / "out"


@pytest.mark.parametrize(
    ("read", "written"),
    [
        (run_data.Step, metrics.StepStats),
        (run_data.Evaluation, metrics.EvalStats),
        (run_data.Sample, metrics.Sample),
        (run_data.RunRecord, metrics.RunRecord),
    ],
)
def test_every_field_that_the_report_reads_is_written(read: Any, written: Any):
    assert set(read.model_fields) <= {field.name for field in dataclasses.fields(written)}


def test_every_part_of_the_run_record_is_there(directory: Path):
    """The report takes a part that is missing for empty, so a misspelt name would go unnoticed."""
    record = json.loads((directory / "run.json").read_text())
    for part, model in (("machine", run_data.Machine), ("data", run_data.DataFacts), ("model", run_data.ModelFacts)):
        assert set(model.model_fields) <= set(record[part]), part
    assert set(run_data.PlannedBytes.model_fields) <= set(record["plan"])
    assert {"total", "budget"} <= set(record["plan"]["host_bytes"])
    assert set(run_data.SourceReport.model_fields) <= set(record["data"]["reports"][0])
    assert set(run_data.Lengths.model_fields) == set(record["data"]["lengths"])
    assert record["model"]["trained_parameters"] < record["model"]["parameters"]  # norms are frozen


def test_the_report_has_what_the_run_wrote(directory: Path):
    run = run_data.read_run(directory)
    assert [step.step for step in run.steps] == [1, 2, 3, 4]
    assert [evaluation.step for evaluation in run.evaluations] == [0, 2, 4]
    assert run.record is not None and run.record.data.lengths.counts and run.record.steps == 4
    written = read_log(directory / "samples.jsonl", metrics.Sample)
    for prompt, found in zip(PROMPTS, answers(run), strict=True):
        first, *_, last = [sample for sample in written if sample.prompt == prompt]
        assert found.last and (found.first.answer, found.last.answer) == (first.answer, last.answer)
        assert (found.first.step, found.last.step) == (0, 4)


def test_its_page_shows_every_section_and_answers_side_by_side(directory: Path):
    page = write_report(directory).read_text(encoding="utf-8")
    for section in ("Training", "Evaluation", "Memory", "Time", "Data", "Samples", "Configuration", "Made with"):
        assert re.search(rf"<h2[^>]*>\s*{section}", page), section
    for sample in read_log(directory / "samples.jsonl", metrics.Sample):
        assert sample.answer in page or sample.step == 2  # between the first and the last: folded away or left out
    assert "Before training" in page and "frozen" in page
