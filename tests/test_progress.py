"""What a person sees of a run, in a terminal and in a log file."""

import io
import re
from dataclasses import replace

from rich.console import Console

from slideformer.metrics import EvalStats, RunRecord, Sample, StepStats
from slideformer.progress import ProgressLine
from slideformer.units import GIB

RUN = RunRecord("", {}, {}, {}, {}, {}, {}, steps=20)
STEP = StepStats(12, 2.31412, 1.0234, 1e-5, 32768, 3000, 2.0, 16384.0, 8 * GIB, 53 * GIB)


def shown(numbers: list[int], *, terminal: bool, width: int = 80, step: StepStats = STEP, **settings: int) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width)
    line = ProgressLine(console=console, **settings)
    line.began(RUN, 0)
    for number in numbers:
        line.stepped(replace(step, step=number))
    line.ended()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())


def test_plain_lines_when_not_a_terminal():
    assert shown([12], terminal=False) == (
        "step 12/20  loss 2.3141  norm 1.02  16,384 tok/s  0:16 left  GPU 8.0 GiB  host 53.0 GiB\n"
    )


def test_logging_steps_thins_plain_lines_but_keeps_the_last():
    lines = shown(list(range(1, 21)), terminal=False, logging_steps=8).splitlines()
    assert [line.split()[1] for line in lines] == ["8/20", "16/20", "20/20"]


def test_a_run_without_gpu_shows_no_gpu():
    assert "GPU" not in shown([1], terminal=False, step=replace(STEP, gpu_peak_bytes=0))


def test_the_live_line_is_one_line_with_step_loss_and_time_left():
    last = shown([11, 12], terminal=True).strip().split("\r")[-1]
    assert "\n" not in last and len(last) <= 80
    for part in ("12/20", "loss 2.3141", "norm 1.02", "16,384 tok/s", "0:16 left"):
        assert part in last


def test_a_wide_terminal_has_a_bar():
    assert "━" in shown([12], terminal=True, width=130)
    assert "━" not in shown([12], terminal=True, width=80)


def test_time_left_follows_the_recent_steps():
    file = io.StringIO()
    line = ProgressLine(console=Console(file=file, force_terminal=False))
    line.began(replace(RUN, steps=1000), 0)
    line.stepped(replace(STEP, step=1, seconds=1000.0))
    for number in range(2, 31):
        line.stepped(replace(STEP, step=number, seconds=1.0))
    assert "16:10 left" in file.getvalue().splitlines()[-1]  # 970 steps of one second; the slow first is forgotten


def test_evaluations_and_answers_are_lines_of_their_own():
    file = io.StringIO()
    line = ProgressLine(console=Console(file=file, width=80))
    line.began(RUN, 0)
    line.evaluated(EvalStats(10, 2.0, 7.389, 12345, 61.0))
    line.sampled([Sample(10, "Say [b]hello", "[/b] hello")])
    assert file.getvalue() == (
        "step 10/20  held-out loss 2.0000  perplexity 7.389  12,345 tokens in 1:01\n"
        "prompt: Say [b]hello\nanswer after step 10: [/b] hello\n"
    )
