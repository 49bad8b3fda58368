"""What counts as flat: noise and a warm-up do, a leak does not."""

import random

import pytest
from soak.judge import judge

SECONDS = [5.0 * k for k in range(200)]


def series(leak: float = 0.0) -> list[float]:
    noise = random.Random(1)
    return [(600 if k > 10 else 300) + noise.uniform(-5, 5) + leak * k for k in range(200)]


def test_noise_and_a_warm_up_are_flat():
    assert judge("rss", SECONDS, series(), counted=False).flat


def test_a_leak_of_three_percent_is_not():
    verdict = judge("rss", SECONDS, series(leak=0.1), counted=False)
    assert not verdict.flat and verdict.growth == pytest.approx(0.027, abs=0.01)
    assert "NOT FLAT" in str(verdict)


def test_growth_in_the_middle_that_goes_back_before_the_end_shows_in_no_verdict_of_the_ends_alone():
    late = [value + 40 * (100 < k < 180) for k, value in enumerate(series())]
    assert not judge("rss", SECONDS, late, counted=False).flat


def test_one_more_file_is_one_too_many():
    assert judge("files", SECONDS, [30.0] * 200, counted=True).flat
    assert not judge("files", SECONDS, [30.0] * 150 + [31.0] * 50, counted=True).flat


def test_a_file_that_is_open_now_and_then_is_no_leak():
    assert judge("files", SECONDS, [30.0 + (k % 7 == 0) for k in range(200)], counted=True).flat


def test_threads_that_come_and_go_hide_no_thread_that_stays():
    coming_and_going = random.Random(2)
    threads = [6.0 + coming_and_going.choice([0, 0, 1, 3, 5]) for _ in range(200)]
    assert judge("threads", SECONDS, threads, counted=True).flat
    leaked = [value + (k > 150) for k, value in enumerate(threads)]
    assert not judge("threads", SECONDS, leaked, counted=True).flat


def test_too_short_a_run_is_told():
    with pytest.raises(ValueError, match="run for longer"):
        judge("rss", SECONDS[:15], [1.0] * 15, counted=False)
