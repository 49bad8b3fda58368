"""Played through by hand: what overlaps, what waits, and for what."""

from dataclasses import replace
from itertools import pairwise

import pytest

from slideformer.plan.schedule import Schedule, Span, play, play_in_turn
from slideformer.plan.step_work import StepWork, scaled

BLOCKS = 4


def work(**changes: object) -> StepWork:
    """Computation of 1 s a block in forward and 2 in backward; all else takes no time unless said."""
    nothing = [0.0] * BLOCKS
    idle = StepWork(
        forward=[1.0] * BLOCKS, backward=[2.0] * BLOCKS, head=1.0,
        call_forward=nothing, call_backward=nothing, fetch=nothing, fetch_head=0.0, fetch_inputs=0.0,
        send=nothing, send_head=0.0, save=nothing, load=nothing, save_outputs=nothing,
        load_outputs=nothing, micro_batches=1, update=nothing, update_head=0.0, update_table=0.0,
        update_rows=0.0, read=nothing, write=nothing, read_weights=nothing, write_boundary=nothing,
        read_boundary=nothing, resident=0, buffers=4, weight_buffers=4, boundary_buffers=4,
        depth=3, slots=BLOCKS, clipping=False, tied=True,
    )  # fmt: skip
    return replace(idle, **changes)  # type: ignore[arg-type]


def spans(schedule: Schedule, lane: str) -> list[Span]:
    return [span for span in schedule.spans if span.lane == lane]


def test_computation_alone_is_the_step():
    schedule = play(work())
    assert schedule.seconds == 13.0 and schedule.lanes == {"compute": 13.0, "h2d": 0.0, "d2h": 0.0, "adamw": 0.0}


def test_fast_copies_hide_behind_computation_but_for_the_first():
    schedule = play(work(fetch=[0.5] * BLOCKS))
    assert schedule.seconds == 13.5  # block 0's weights are updated last and needed first
    assert schedule.busy_seconds("h2d") == 0.5 * (BLOCKS + 1)  # the last three are still there in backward


def test_slow_copies_set_the_pace():
    schedule = play(work(fetch=[3.0] * BLOCKS))
    assert schedule.seconds > 12 + 1 and schedule.busy_seconds("h2d") == 15.0


def test_updates_hide_behind_backward():
    assert play(work(update=[1.0] * BLOCKS)).seconds == 14.0  # only block 0's stands free
    assert play(work(update=[2.0] * BLOCKS)).seconds == 15.0


def test_a_device_waits_for_a_host_whose_calls_take_longer():
    bound = play(work(call_forward=[3.0] * BLOCKS, call_backward=[4.0] * BLOCKS))
    assert bound.seconds == bound.lanes["calls"] == 7.0 * BLOCKS and bound.lanes["compute"] == 13.0
    assert play(work(call_forward=[0.9] * BLOCKS, call_backward=[1.9] * BLOCKS)).seconds == 13.0


def test_the_host_runs_ahead_as_far_as_its_waits_allow():
    """Forward's calls take three times as long as its computation: hidden behind the backward before, unless the host
    waits there for an update."""
    slow = work(call_forward=[3.0] * BLOCKS, call_backward=[0.1] * BLOCKS, fetch=[0.1] * BLOCKS)
    assert play(slow).seconds == pytest.approx(13.1)
    waits = play(replace(slow, update=[0.5] * BLOCKS))
    assert waits.seconds == 0.5 + 3.0 * BLOCKS + 1 + 2.0 * BLOCKS  # update of block 0, forward's calls, head, backward


def test_clipped_updates_run_ahead_of_the_next_forward_in_its_order():
    schedule = play(work(update=[1.0] * BLOCKS, clipping=True))
    assert [span.what for span in spans(schedule, "adamw")] == [f"update block {i}" for i in range(BLOCKS)]
    assert schedule.seconds == 14.0
    slow = play(work(update=[3.0] * BLOCKS, clipping=True))
    assert slow.seconds == 3 * BLOCKS + 1 + 9  # nothing to do for the CPU in backward
    assert play(work(update=[3.0] * BLOCKS)).seconds < slow.seconds


def test_few_gradient_slots_hold_backward_up():
    many, few = (play(work(update=[8.0] * BLOCKS, send=[0.1] * BLOCKS, slots=slots)) for slots in (4, 1))
    assert many.seconds <= few.seconds
    backward = [span for span in spans(few, "compute") if span.what.startswith("backward")]
    gaps = [after.start - before.stop for before, after in pairwise(backward)]
    assert max(gaps) > 0.5


def test_a_step_begins_when_the_embedding_is_updated():
    schedule = play(work(update_table=1.0, update_rows=5.0))
    assert schedule.seconds == 13.0 + 5.0
    assert play(work(update_table=1.0)).seconds == 13.0


def test_an_untied_head_is_needed_only_behind_the_blocks():
    assert play(work(update_head=4.0, tied=False)).seconds == 13.0
    assert play(work(update_head=30.0, tied=False)).seconds > 20.0


def test_boundaries_go_out_in_forward_and_come_back_in_backward():
    schedule = play(work(save=[0.25, 0.0, 0.0, 0.0], load=[0.5, 0.0, 0.0, 0.0]))
    assert schedule.busy_seconds("d2h") == 0.25 and schedule.busy_seconds("h2d") == 0.5
    assert schedule.seconds == 13.0


def test_a_host_that_computes_does_one_thing_after_the_other():
    schedule = play_in_turn(work(update=[1.0] * BLOCKS, fetch=[0.5] * BLOCKS))
    assert schedule.seconds == pytest.approx(13 + 4 + 2.5) == sum(schedule.lanes.values())


def test_a_lane_can_be_made_faster():
    before = work(update=[1.0] * BLOCKS, fetch=[0.5] * BLOCKS)
    after = scaled(before, {"compute": 0.5})
    assert after.forward == [0.5] * BLOCKS and after.head == 0.5 and after.fetch == before.fetch


@pytest.mark.parametrize("clipping", [False, True])
def test_nothing_overlaps_on_a_lane(clipping: bool):
    schedule = play(work(fetch=[0.7] * BLOCKS, send=[0.3] * BLOCKS, update=[1.5] * BLOCKS, clipping=clipping, depth=2))
    for lane in schedule.lanes:
        ordered = sorted(spans(schedule, lane), key=lambda span: span.start)
        assert all(a.stop <= b.start + 1e-9 for a, b in pairwise(ordered))


# ---- what is resident, and what is on disk


def test_a_resident_block_is_neither_fetched_nor_sent_nor_updated_by_the_cpu():
    every = {"fetch": [0.7] * BLOCKS, "send": [0.3] * BLOCKS, "update": [1.5] * BLOCKS}
    sliding, half, all_there = (play(work(**every, depth=2, resident=count)) for count in (0, 2, BLOCKS))
    for lane, seconds in {"h2d": 0.7 * 2, "d2h": 0.3 * 2, "adamw": 1.5 * 2}.items():
        assert half.busy_seconds(lane) == pytest.approx(seconds) and sliding.busy_seconds(lane) > seconds
    assert all_there.seconds == 13.0 and sum(all_there.lanes.values()) == 13.0
    assert half.seconds < sliding.seconds


def test_updates_of_the_others_hide_behind_resident_blocks():
    """Those come last in backward and first in forward."""
    assert play(work(update=[3.0] * BLOCKS, resident=2)).seconds == 13.0
    assert play(work(update=[3.0] * BLOCKS, resident=2, clipping=True)).seconds == 16.0


@pytest.mark.parametrize("clipping", [False, True])
def test_a_slow_disk_sets_the_pace(clipping: bool):
    on_disk = {"update": [0.1] * BLOCKS, "read": [3.0] * BLOCKS, "write": [4.0] * BLOCKS, "clipping": clipping}
    schedule = play(work(**on_disk))
    assert schedule.busy_seconds("disk") == pytest.approx(7.0 * BLOCKS) and schedule.seconds >= 7.0 * BLOCKS
    ordered = sorted(spans(schedule, "disk"), key=lambda span: span.start)
    assert all(a.stop <= b.start + 1e-9 for a, b in pairwise(ordered))
    half = play(work(**{**on_disk, "read": [3.0, 0.0] * 2, "write": [4.0, 0.0] * 2}))
    assert half.seconds < 0.7 * schedule.seconds


def test_a_fast_disk_hides():
    assert play(work(update=[1.0] * BLOCKS, read=[0.2] * BLOCKS, write=[0.3] * BLOCKS)).seconds < 15.0


def test_fewer_buffers_wait_more():
    on_disk = {"update": [1.0] * BLOCKS, "read": [1.0] * BLOCKS, "write": [1.0] * BLOCKS}
    four, one = (play(work(**on_disk, buffers=buffers)).seconds for buffers in (4, 1))
    assert four < one


@pytest.mark.parametrize("clipping", [False, True])
def test_weights_are_read_twice_a_step_less_what_stays_and_only_when_they_are_written(clipping: bool):
    on_disk = {"update": [0.5] * BLOCKS, "read": [0.4] * BLOCKS, "write": [0.3] * BLOCKS, "clipping": clipping}
    schedule = play(work(**on_disk, read_weights=[3.0] * BLOCKS, fetch=[0.1] * BLOCKS, depth=2))
    reads = [span for span in spans(schedule, "disk") if span.what.startswith("read weights")]
    assert sum(span.stop - span.start for span in reads) == pytest.approx(3.0 * (2 * BLOCKS - 2))
    assert schedule.seconds >= schedule.busy_seconds("disk") > 18.0
    for read in reads[:BLOCKS]:
        written = [s for s in spans(schedule, "disk") if s.what == read.what.replace("read weights", "write block")]
        assert all(span.stop <= read.start + 1e-9 or span.start >= read.start for span in written)


def test_weights_of_which_none_or_few_are_on_disk_come_in_time():
    assert play(work(read_weights=[0.2] * BLOCKS)).seconds < 13.5
    alone = play(work(read_weights=[0.0, 0.0, 2.0, 0.0])).seconds
    assert alone == 13.0  # read while blocks 0 and 1 compute, and still there in backward


def test_boundaries_go_to_disk_and_come_back_while_blocks_compute():
    moved = {"save": [0.1] * BLOCKS, "load": [0.1] * BLOCKS}
    fast = play(work(**moved, write_boundary=[0.3, 0.3, 0.0, 0.0], read_boundary=[0.2, 0.2, 0.0, 0.0]))
    assert fast.busy_seconds("disk") == pytest.approx(1.0) and fast.seconds == play(work(**moved)).seconds
    order = [span.what for span in sorted(spans(fast, "disk"), key=lambda span: span.start)]
    assert order == ["write boundary 0", "write boundary 1", "read boundary 1", "read boundary 0"]
    slow = {**moved, "write_boundary": [3.0] * BLOCKS, "read_boundary": [4.0] * BLOCKS}
    assert play(work(**slow)).seconds > 4 * (3 + 4)
    assert play(work(**slow, boundary_buffers=1)).seconds > play(work(**slow)).seconds


def test_what_each_lane_has_to_do_is_what_it_does():
    step = work(fetch=[0.7] * BLOCKS, send=[0.3] * BLOCKS, update=[1.5] * BLOCKS, read=[0.1] * BLOCKS, resident=1)
    step = replace(step, read_weights=[0.0, 0.3, 0.2, 0.1], save=[0.2] * BLOCKS, load=[0.1] * BLOCKS)
    step = replace(step, write_boundary=[0.2, 0.2, 0.0, 0.0], read_boundary=[0.1, 0.1, 0.0, 0.0])
    step = replace(step, read=[0.0, *step.read[1:]], write=[0.0, 0.2, 0.2, 0.2], depth=2)
    step = replace(step, call_forward=[0.1] * BLOCKS, call_backward=[0.3] * BLOCKS)
    assert play(step).lanes == pytest.approx(step.busy_seconds())
