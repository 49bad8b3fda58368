"""Seconds follow sizes and rates; the bound is the lane that matters; the table says so."""

from dataclasses import replace

import pytest
import torch
from made_up_machines import machine
from made_up_plans import BLOCKS, VOCABULARY, WIDTH, plan
from made_up_timings import BACKWARD, FORWARD, MODEL, timing

from slideformer.plan.operations import BlockOperations, ModelOperations, full_step
from slideformer.plan.piece_seconds import step_work
from slideformer.plan.table import render
from slideformer.plan.timing import settle, slowdown_at
from slideformer.plan.timing_table import render_timing


def test_computation_is_what_is_counted_over_the_rates():
    chosen, tokens = plan(recompute_all=True), 32 * 1024
    step = step_work(chosen.model, MODEL, chosen.sizes, full_step(32, 1024), machine(), torch.bfloat16, True)
    one = tokens * (24 * WIDTH**2 / 100e12 + 1024 * 4 * WIDTH / 50e12 + 40 * WIDTH / 1e12)
    assert step.forward == pytest.approx([one] * BLOCKS)
    assert all(3 * one < seconds < 3.4 * one for seconds in step.backward)  # recomputed, and summed in fp32
    kept = step_work(
        chosen.model, MODEL, replace(chosen.sizes, kept=2), full_step(32, 1024), machine(), torch.bfloat16, True
    )
    assert kept.backward[-2:] == pytest.approx([step.backward[-1] - one] * 2) and kept.backward[0] == step.backward[0]


def test_copies_and_updates_are_bytes_and_parameters_over_the_rates():
    chosen = plan()
    step = step_work(chosen.model, MODEL, chosen.sizes, full_step(32, 1024), machine(), torch.bfloat16, True)
    block = 12 * WIDTH**2
    assert step.fetch[0] == step.send[0] == pytest.approx(block * 2 / 20e9)
    assert step.update[0] == pytest.approx(block / 2e9)
    assert step.update_table + step.update_rows == pytest.approx(VOCABULARY * WIDTH / 2e9)


def test_a_gpu_waits_for_a_host_that_calls_many_operators():
    chosen, rates = plan(), machine()
    slow = replace(rates, compute=replace(rates.compute, call_seconds=1.0))
    calls = ModelOperations([BlockOperations(replace(FORWARD, calls=3), BACKWARD)] * BLOCKS, VOCABULARY * WIDTH)
    step = step_work(chosen.model, calls, chosen.sizes, full_step(32, 1024), slow, torch.bfloat16, True)
    calls_of_a_pass = 3.0 * chosen.sizes.micro_batches
    assert step.call_forward == [calls_of_a_pass] * BLOCKS
    kept = chosen.sizes.kept_of(BLOCKS)[0]
    assert step.call_backward == [calls_of_a_pass] * (BLOCKS - kept) + [0.0] * kept
    cpu = step_work(
        chosen.model, calls, chosen.sizes, full_step(32, 1024), replace(slow, link=None), torch.bfloat16, True
    )
    assert cpu.call_forward == [0.0] * BLOCKS and cpu.forward[0] > calls_of_a_pass


def test_few_tokens_are_bound_by_adamw_and_many_by_the_gpu():
    few, many = timing(1), timing(128)
    assert few.bound == "adamw" and many.bound == "compute"
    assert few.tokens < few.break_even_tokens and many.tokens > many.break_even_tokens
    assert many.faster["compute"] < 0.7 * many.seconds and few.faster["adamw"] < 0.8 * few.seconds


def test_the_step_is_no_shorter_than_its_longest_lane_and_no_longer_than_all_of_them():
    for sequences in (1, 8, 64):
        predicted = timing(sequences)
        assert max(predicted.lanes.values()) <= predicted.seconds * 1.0001
        assert predicted.seconds < sum(predicted.lanes.values())


def test_clipping_costs_time():
    assert timing(4, clipping=True).seconds > 1.1 * timing(4, clipping=False).seconds


def test_the_table_says_what_clipping_costs():
    small = timing(8)
    assert small.seconds_unclipped and small.seconds_unclipped < small.seconds
    assert "max_grad_norm: null takes" in render_timing(small)
    unclipped = timing(8, clipping=False)
    assert unclipped.seconds_unclipped is None and "max_grad_norm" not in render_timing(unclipped)
    assert "max_grad_norm" not in render_timing(timing(512))  # hidden behind computation


def test_twice_the_tokens_are_more_a_second_where_the_cpu_is_the_bound():
    few = timing(1)
    assert few.tokens_per_second_if_doubled > 1.5 * few.tokens_per_second


def test_copies_slow_adamw_down():
    work = step_work(plan().model, MODEL, plan().sizes, full_step(1, 1024), machine(), torch.bfloat16, False)
    slower = settle(work, machine())[0].update[0] / work.update[0]
    assert 1.0 < slower < slowdown_at(machine(), 1.0)  # between alone and under copies
    assert slowdown_at(machine(gpu=False), 1.0) == 1.0


def test_a_cpu_does_one_thing_after_the_other():
    predicted = timing(8, gpu=False)
    assert predicted.seconds == pytest.approx(sum(predicted.lanes.values()))


def test_levels_of_keeping_leave_less_to_backward():
    tokens, rates = full_step(32, 1024), machine()
    sizes = replace(plan().sizes, kept=3, kept_outputs=4, micro_batch_size=32, micro_batches=1)
    step = step_work(plan().model, MODEL, sizes, tokens, rates, torch.bfloat16, False)
    again = [seconds - step.backward[-1] for seconds in step.backward]
    elementwise = tokens.computed * FORWARD.memory_bytes / rates.compute.memory_bytes
    assert again == pytest.approx([step.forward[0]] * (BLOCKS - 7) + [elementwise] * 4 + [0.0] * 3)


def test_a_resident_update_takes_the_gpu_its_traffic():
    sizes = replace(plan().sizes, resident=2, kept=BLOCKS)
    for state, traffic in (("fp32", 26), ("bf16", 18)):
        step = step_work(
            plan().model, MODEL, replace(sizes, optimizer_state=state), full_step(32, 1024), machine(), torch.bfloat16,
            False,
        )  # fmt: skip
        assert step.backward[0] - step.backward[-1] == pytest.approx(12 * WIDTH**2 * traffic / 1e12)
    ends = step_work(
        plan().model, MODEL, replace(sizes, resident_ends=True), full_step(32, 1024), machine(), torch.bfloat16, False
    )  # fmt: skip
    assert ends.head > step.head and ends.fetch_head == ends.update_table == ends.update_rows == ends.send_head == 0.0


def test_records_on_disk_are_read_and_written_at_its_rates():
    chosen = plan(host="2500MiB", disk="1TiB", recompute_all=True)
    step = step_work(chosen.model, MODEL, chosen.sizes, full_step(32, 1024), machine(), torch.bfloat16, True)
    on_disk = [size > 0 for size in step.read]
    assert sum(on_disk) == chosen.sizes.disk_blocks
    assert max(step.read) == pytest.approx(10 * 12 * WIDTH**2 / 2e9) and max(step.write) == 2 * max(step.read)


def test_weights_on_disk_are_read_for_computing_too_and_written_with_the_rest():
    sizes = replace(
        plan(recompute_all=True).sizes, disk_blocks=4, disk_weight_blocks=2, host_boundaries=6, disk_boundaries=3
    )
    step = step_work(plan().model, MODEL, sizes, full_step(32, 1024), machine(), torch.bfloat16, True)
    parameters = 12 * WIDTH**2
    assert sorted(set(step.read_weights)) == pytest.approx([0.0, 2 * parameters / 2e9])
    assert sum(seconds > 0 for seconds in step.read_weights) == 2
    for weights, read, write in zip(step.read_weights, step.read, step.write, strict=True):
        assert write == 2 * read and (not weights or read == pytest.approx(12 * parameters / 2e9))
    boundary = 32 * 1024 * WIDTH * 2
    assert step.write_boundary[:4] == pytest.approx([boundary / 1e9] * 3 + [0.0])
    assert step.read_boundary[:4] == pytest.approx([boundary / 2e9] * 3 + [0.0])
    assert step.save[5] > 0 and step.write_boundary[5] == 0  # in host memory


def test_the_table_names_bound_rate_and_duration():
    long = timing(128, steps=10**6)
    text = render_timing(long)
    assert "computation (the bound)" in text and f"{long.tokens_per_second:,.0f} tokens/s" in text
    assert f"1,000,000 steps take {long.run_seconds / 86400:.1f} days" in text
    assert "predicted for Made-up GPU" in text


def test_the_plan_carries_its_timing():
    chosen = replace(plan(), timing=timing())
    assert render_timing(timing()) in render(chosen) and "busy" not in render(plan())
    values = chosen.as_json()["timing"]
    assert values["lanes"].keys() == {"compute", "h2d", "d2h", "adamw"} and values["bound"] in values["faster"]
    assert values["run_seconds"] == pytest.approx(100 * values["seconds"]) and "schedule" not in values
    assert plan().as_json()["timing"] is None
