"""The picture: its memory is the plan's, and it is refused where it cannot be drawn."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_plans import BLOCKS, plan
from made_up_timings import timing

from slideformer.errors import ConfigError
from slideformer.plan.plot import KEPT, device_memory, host_memory, write_picture

TIMED = replace(plan(), timing=timing())


def test_a_step_s_memory_peaks_at_the_plan_s_peak():
    assert TIMED.timing
    times, areas = device_memory(TIMED, TIMED.timing)
    assert max(map(sum, zip(*areas.values(), strict=True))) == TIMED.device_peak_bytes
    assert times[0] == 0 and times[-1] == TIMED.timing.seconds and times == sorted(times)
    assert all(len(sizes) == len(times) == 2 * BLOCKS + 2 for sizes in areas.values())


def test_what_is_kept_grows_in_forward_and_shrinks_in_backward():
    kept = replace(TIMED, sizes=replace(TIMED.sizes, kept=3))
    assert kept.timing
    held = device_memory(kept, kept.timing)[1][KEPT]
    peak = plan().device["backward"][KEPT]
    rising = [peak / 3, 2 * peak / 3, peak]
    assert held[:BLOCKS] == pytest.approx([0.0] * (BLOCKS - 3) + rising)
    assert held[BLOCKS + 1 : 2 * BLOCKS + 1] == pytest.approx(rising[::-1] + [0.0] * (BLOCKS - 3))


def test_the_host_s_memory_is_taken_from_the_beginning():
    assert TIMED.timing
    _, areas = host_memory(TIMED, TIMED.timing)
    assert sum(sizes[0] for sizes in areas.values()) == TIMED.host_peak_bytes


@pytest.mark.parametrize(("suffix", "head"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_a_picture_is_written(tmp_path: Path, suffix: str, head: bytes):
    pytest.importorskip("matplotlib")
    write_picture(TIMED, tmp_path / f"plan{suffix}")
    assert (tmp_path / f"plan{suffix}").read_bytes().startswith(head)


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="needs matplotlib") as caught:
        write_picture(TIMED, tmp_path / "plan.png")
    assert "slideformer[plot]" in caught.value.hint


def test_without_rates_or_with_another_suffix_there_is_none(tmp_path: Path):
    with pytest.raises(ConfigError, match="rates are not known"):
        write_picture(plan(), tmp_path / "plan.png")
    with pytest.raises(ConfigError, match="not a picture's name"):
        write_picture(TIMED, tmp_path / "plan.pdf")
