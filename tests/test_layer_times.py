"""Each block's measured seconds stand beside those planned for it, and a wrong plan is said."""

import json
from pathlib import Path

import layer_times
import pytest
from layer_pieces import Layer, judge, layers_of, measured_seconds, planned_seconds, render, step_median, total
from made_up_machines import machine
from made_up_timings import timing

from slideformer.bench import recording
from slideformer.bench.spans import ADAMW, COMPUTE, D2H, H2D, Span
from slideformer.plan.disk_queue import Span as PlannedSpan
from slideformer.plan.schedule import Schedule

BLOCKS = ["layers.0", "layers.1"]
PLANNED = Schedule(
    1.0,
    [
        PlannedSpan("adamw", "update block 1", 0.0, 0.25),  # its other part runs behind the step's end
        PlannedSpan("compute", "forward 0", 0.0, 0.5), PlannedSpan("compute", "forward 1", 0.5, 1.0),
        PlannedSpan("compute", "backward 1", 1.0, 2.0), PlannedSpan("compute", "backward 0", 2.0, 3.0),
        PlannedSpan("compute", "head", 1.0, 1.0), PlannedSpan("h2d", "fetch 1", 0.0, 0.1),
        PlannedSpan("h2d", "fetch 1", 0.5, 0.6), PlannedSpan("d2h", "send 1", 2.0, 2.3),
        PlannedSpan("adamw", "update embedding", 2.0, 2.5), PlannedSpan("adamw", "update block 1", 2.75, 3.0),
        PlannedSpan("disk", "read weights 1", 0.0, 0.4),
    ],
)  # fmt: skip


def spans(slower: float = 1.0) -> list[Span]:
    """Of three steps, the second half as long again; block 1's backward takes `slower` times what is planned."""
    found = []
    for step, factor in enumerate((1.0, 1.5, 1.0)):
        pieces = [
            (COMPUTE, "forward 0", 0.25), (COMPUTE, "forward 0", 0.25), (COMPUTE, "forward 1", 0.5),
            (COMPUTE, "head", 9.0), (COMPUTE, "backward 1", 0.75 * slower), (COMPUTE, "flush 1", 0.25 * slower),
            (COMPUTE, "backward 0", 1.0), (COMPUTE, "GradientFlush", 9.0), (H2D, "fetch 1", 0.1),
            (H2D, "fetch head", 9.0), (D2H, "send 1", 0.33), (D2H, "copy", 9.0), (ADAMW, "update layers.1", 0.6),
            (ADAMW, "update embedding", 9.0),
        ]  # fmt: skip
        begin = 100.0 * step
        for lane, name, seconds in pieces:
            found.append(Span(lane, name, begin, begin + seconds * factor))
            begin += 10.0
    return found[::-1]  # in whichever order


def test_pieces_are_summed_over_a_step_and_medians_over_the_steps():
    first, second = layers_of(spans(), 3, PLANNED, BLOCKS)
    assert first.measured == pytest.approx({"forward": 0.5, "backward": 1.0, "both": 1.5})
    assert second.measured == pytest.approx(
        {"forward": 0.5, "backward": 1.0, "both": 1.5, "fetch": 0.1, "send": 0.33, "AdamW": 0.6}
    )
    assert second.planned == pytest.approx(
        {"forward": 0.5, "backward": 1.0, "both": 1.5, "fetch": 0.2, "send": 0.3, "AdamW": 0.5}
    )
    assert first.deviation("both") == pytest.approx(0.0) and first.deviation("AdamW") is None
    assert second.deviation("fetch") == pytest.approx(-0.5) and second.deviation("AdamW") == pytest.approx(0.2)


def test_a_piece_that_some_steps_lack_has_no_median():
    assert step_median([1.0, 2.0, 5.0, 6.0], 2) == 7.0
    with pytest.raises(ValueError, match="3 runs of a piece of work in 2 steps"):
        step_median([1.0, 2.0, 3.0], 2)


def test_the_table_has_every_block_and_their_sum():
    lines = render(layers_of(spans(), 3, PLANNED, BLOCKS)).splitlines()
    assert [line.split()[0] for line in lines] == ["block", "0", "1", "all"]
    assert lines[1].split()[1:7] == ["500.00", "500.00", "+0.0%", "1000.00", "1000.00", "+0.0%"]
    assert lines[1].split()[10:] == ["-"] * 6  # nothing of it is copied or updated
    assert lines[3].split()[1:3] == ["1000.00", "1000.00"] and lines[3].split()[-3:] == ["600.00", "500.00", "+20.0%"]


@pytest.mark.parametrize(("slower", "right"), [(1.0, True), (1.2, True), (1.3, False), (0.8, True), (0.7, False)])
def test_forward_and_backward_together_are_judged(slower: float, right: bool):
    text, within = judge(layers_of(spans(slower), 3, PLANNED, BLOCKS), 0.15)
    assert within == right
    assert text.endswith("computation is within 15%" if right else "computation is NOT within 15%")
    if slower != 1.0:
        both = (0.5 + slower) / 1.5 - 1
        assert f"backward {slower - 1:+.1%} (block 1), both {both:+.1%} (block 1)" in text


def test_a_block_without_a_measurement_is_no_success():
    layers = layers_of([span for span in spans() if span.name != "backward 0"], 3, PLANNED, BLOCKS)
    with pytest.raises(ValueError, match="backward: not measured, or not planned, for each block"):
        judge(layers, 0.15)
    with pytest.raises(ValueError, match="for each block"):
        judge([], 0.15)


def test_the_sum_is_over_what_there_is():
    layers = [Layer("0", {"send": 1.0}, {"send": 2.0}), Layer("1", {}, {"send": 1.0})]
    assert total(layers) == Layer("all", {"send": 1.0}, {"send": 3.0})


def test_every_piece_of_a_plan_is_found_by_its_name():
    planned = planned_seconds(timing(clipping=False, resident=0).schedule)
    assert sorted(planned) == list(range(len(planned)))
    assert all(seconds.keys() == {"forward", "backward", "fetch", "send", "AdamW"} for seconds in planned.values())


def test_names_are_those_that_a_recording_gives():
    named = {*recording.FOLLOWING.values()}
    of_one = [Span(lane, f"{name} 0", 0.0, 1.0) for (lane, _), name in recording.FOLLOWING.items()]
    assert named == {"flush", "send", "update"}
    assert measured_seconds(of_one, 1, BLOCKS)[0] == {"backward": 2.0, "send": 1.0}


# ---- the command, on this machine's CPU with rates of another

WORDS = ["--shape", "tiny", "--blocks", "3", "--sequences", "4", "--length", "32", "--steps", "2", "--warm-up", "1"]
HERE = ["--device", "cpu", "--threads", "1"]


@pytest.fixture
def rates(tmp_path: Path) -> str:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(machine(gpu=False).as_json()))
    return str(path)


def test_a_run_shows_every_block_and_fails_where_the_plan_was_wrong(tmp_path, rates, capsys):
    out = tmp_path / "out.json"
    assert layer_times.main([*WORDS, *HERE, "--rates", rates, "--json", str(out)]) == 1  # rates that no CPU has
    printed = capsys.readouterr().out
    assert "s a step (predicted" in printed and "host peak: " in printed
    assert "each block's computation is NOT within 15%" in printed
    written = json.loads(out.read_text())
    layers = written["result"]["layers"]
    assert [layer["name"] for layer in layers] == ["0", "1", "2"] and written["case"]["blocks"] == 3
    every = {"forward", "backward", "both", "fetch", "send", "AdamW"}
    assert all(layer["measured"].keys() == layer["planned"].keys() == every for layer in layers)
    assert all(seconds > 0 for layer in layers for seconds in layer["measured"].values())


def test_a_run_succeeds_where_the_plan_was_near_enough(rates, capsys):
    assert layer_times.main([*WORDS, *HERE, "--rates", rates, "--within", "1e9"]) == 0
    assert "each block's computation is within" in capsys.readouterr().out


def test_without_rates_nothing_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(layer_times, "record", lambda *_: pytest.fail("a run"))
    assert layer_times.main([*WORDS, *HERE]) == 2
    assert "no rates of this machine" in capsys.readouterr().err


def test_too_many_blocks_are_refused(rates, capsys):
    assert layer_times.main([*WORDS, *HERE, "--blocks", "5", "--rates", rates]) == 2
    assert "blocks: 5, but the model has 4" in capsys.readouterr().err
