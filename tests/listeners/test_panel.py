"""What a person sees of a run in a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from slideformer.listeners.metrics import EvalStats, RunRecord, StepStats
from slideformer.listeners.panel import LivePanel, RunView
from slideformer.units import GIB

PLAN = {"device_bytes": {"budget": 8 * GIB}, "host_bytes": {"budget": 120 * GIB}}
RUN = RunRecord("", {}, {}, {}, PLAN, {}, {"architecture": "Qwen3ForCausalLM", "parameters": 4.02e9}, steps=1200)
STEP = StepStats(
    12, 2.31412, 1.0234, 1e-5, 32768, 3000, 2.0, 16384.0, 7 * GIB, 53 * GIB,
    epoch=0.25, compute_seconds=1.9, h2d_seconds=0.8, d2h_seconds=0.4, optimizer_seconds=2.2,
)  # fmt: skip


def drawn(view: RunView, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(view)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_everything_is_on_the_panel_and_nothing_is_cut(width: int):
    view = RunView(RUN, 0)
    view.add(replace(STEP, step=11, loss=3.0))
    view.add(STEP)
    view.evaluation = EvalStats(10, 1.25111, 3.49, 1000, 2.0)
    lines = drawn(view, width)
    assert {len(line) for line in lines} == {width} and len(lines) == 8 and "…" not in "".join(lines)
    for part in (
        "Qwen3ForCausalLM · 4.02B parameters", "12 of 1,200", "39:36 left", "2.3141", "held out 1.2511", "epoch 0.25",
        "norm 1.02", "lr 1.00e-05", "16,384 tokens/s", "7.0 GiB of 8.0 GiB", "53.0 GiB of 120 GiB", "█▁",
        "95%", "40%", "20%", "100%",
    ):  # fmt: skip
        assert part in "\n".join(lines)


def test_a_wider_terminal_does_not_stretch_it():
    assert {len(line.rstrip()) for line in drawn(RunView(RUN, 0), 200)} == {120}


def test_before_the_first_step_and_without_a_gpu():
    view = RunView(replace(RUN, plan={**PLAN, "device_bytes": {"budget": None}}), 50)
    assert "51 of 1,200 is running" in "\n".join(drawn(view, 80))
    view.add(replace(STEP, gpu_peak_bytes=0))
    assert "GPU" not in "\n".join(drawn(view, 80))


def test_printing_goes_above_the_panel_and_the_last_picture_stays():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    panel = LivePanel(console)
    panel.began(RUN, 0)
    console.print("saved checkpoint-4")
    panel.stepped(replace(STEP, step=1200))
    panel.ended()
    text = Text.from_ansi(file.getvalue()).plain
    assert text.index("saved checkpoint-4") < text.rindex("1,200 of 1,200")


def test_a_run_that_never_began_leaves_the_terminal_alone():
    file = io.StringIO()
    LivePanel(Console(file=file, force_terminal=True)).ended()
    assert file.getvalue() == ""
