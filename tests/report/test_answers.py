"""Answers stand by prompt, before and after."""

from pathlib import Path

from made_up_runs import write_lines

from slideformer.report.answers import answers
from slideformer.report.run_data import read_run


def test_answers_by_prompt_in_the_order_of_the_steps(tmp_path: Path):
    records = [(10, "b", "b10"), (0, "a", "a0"), (0, "b", "b0"), (20, "b", "b20")]
    write_lines(tmp_path / "samples.jsonl", ({"step": s, "prompt": p, "answer": a} for s, p, a in records))
    write_lines(tmp_path / "metrics.jsonl", [])
    a, b = answers(read_run(tmp_path))
    assert (a.prompt, a.first.answer, a.last) == ("a", "a0", None)
    assert [sample.answer for sample in b.samples] == ["b0", "b10", "b20"] and b.last and b.last.answer == "b20"
