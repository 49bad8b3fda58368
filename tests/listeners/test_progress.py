"""What a person sees of a run in a log file, and which of the two a console gets."""

import io
from dataclasses import replace

from rich.console import Console

from slideformer.listeners.metrics import EvalStats, RunRecord, Sample, StepStats
from slideformer.listeners.panel import LivePanel
from slideformer.listeners.progress import PlainLines, progress
from slideformer.units import GIB

RUN = RunRecord("", {}, {}, {}, {}, {}, {}, steps=20)
STEP = StepStats(12, 2.31412, 1.0234, 1e-5, 32768, 3000, 2.0, 16384.0, 8 * GIB, 53 * GIB)


def shown(numbers: list[int], step: StepStats = STEP, run: RunRecord = RUN, logging_steps: int = 1) -> list[str]:
    file = io.StringIO()
    lines = PlainLines(Console(file=file, width=80), logging_steps)
    lines.began(run, 0)
    for number in numbers:
        lines.stepped(replace(step, step=number))
    lines.ended()
    return file.getvalue().splitlines()


def test_a_terminal_gets_the_panel_and_a_file_gets_lines():
    assert isinstance(progress(console=Console(file=io.StringIO(), force_terminal=True)), LivePanel)
    assert isinstance(progress(console=Console(file=io.StringIO(), force_terminal=False)), PlainLines)


def test_a_step_is_one_line_however_narrow_the_console():
    assert shown([12]) == [
        "step 12/20  loss 2.3141  norm 1.02  16,384 tok/s  0:16 left  GPU 8.0 GiB  host 53.0 GiB"
    ]  # fmt: skip


def test_logging_steps_thins_lines_but_keeps_the_last():
    lines = shown(list(range(1, 21)), logging_steps=8)
    assert [line.split()[1] for line in lines] == ["8/20", "16/20", "20/20"]


def test_a_run_without_gpu_shows_no_gpu():
    assert "GPU" not in shown([1], replace(STEP, gpu_peak_bytes=0))[0]


def test_time_left_follows_the_recent_steps():
    file = io.StringIO()
    lines = PlainLines(Console(file=file, force_terminal=False))
    lines.began(replace(RUN, steps=1000), 0)
    lines.stepped(replace(STEP, step=1, seconds=1000.0))
    for number in range(2, 31):
        lines.stepped(replace(STEP, step=number, seconds=1.0))
    assert "16:10 left" in file.getvalue().splitlines()[-1]  # 970 steps of one second; the slow first is forgotten


def test_evaluations_and_answers_are_lines_of_their_own():
    file = io.StringIO()
    line = PlainLines(Console(file=file, width=80))
    line.began(RUN, 0)
    line.evaluated(EvalStats(10, 2.0, 7.389, 12345, 61.0))
    line.sampled([Sample(10, "Say [b]hello", "[/b] hello")])
    assert file.getvalue() == (
        "step 10/20  held-out loss 2.0000  perplexity 7.389  12,345 tokens in 1:01\n"
        "prompt: Say [b]hello\nanswer after step 10: [/b] hello\n"
    )
