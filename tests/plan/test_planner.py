"""The planner takes the first of its preferences that fits, and refuses with numbers and with what would fit."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from made_up_plans import BLOCKS, VOCABULARY, WIDTH, model_of, plan, work_of

from slideformer.errors import DoesNotFit
from slideformer.memory.record_ring import BUFFERS
from slideformer.plan.footprint import device_bytes, host_bytes
from slideformer.plan.sizes import Sizes
from slideformer.units import GIB, MIB, parse_bytes


def refusal(*args: Any, **kwargs: Any) -> DoesNotFit:
    with pytest.raises(DoesNotFit) as caught:
        plan(*args, **kwargs)
    return caught.value


# ---- preferences


def test_with_room_for_all_it_takes_what_it_prefers():
    chosen = plan().sizes
    assert chosen.micro_batch_size == 8 and chosen.micro_batches == 4  # 8192 tokens
    assert chosen.window_depth == 3 and chosen.host_boundaries == 0
    assert chosen.gradient_slots == BLOCKS  # they wait for the norm
    assert chosen.head_chunk == 8192  # 640 MiB of logits, rounded down to a power of two


def test_without_clipping_a_few_gradients_wait():
    assert plan(clipping=False).sizes.gradient_slots == 8


@pytest.mark.parametrize(
    ("batch_size", "max_length", "expected"),
    [
        (1, 1024, (1, 1)),
        (8, 1024, (8, 1)),
        (10, 1024, (5, 2)),
        (13, 4096, (2, 7)),
        (3, 100000, (1, 3)),
        (9, 100, (9, 1)),
    ],
)
def test_micro_batches_are_about_8k_tokens_and_even(batch_size: int, max_length: int, expected: tuple[int, int]):
    chosen = plan(gpu="2TiB", host="2TiB", batch_size=batch_size, max_length=max_length).sizes
    assert (chosen.micro_batch_size, chosen.micro_batches) == expected
    assert chosen.micro_batch_size * chosen.micro_batches >= batch_size


def test_what_the_person_pins_stays():
    chosen = plan(micro_batch_size=3, window_depth=5).sizes
    assert (chosen.micro_batch_size, chosen.micro_batches, chosen.window_depth) == (3, 11, 5)
    assert plan(window_depth=99).sizes.window_depth == BLOCKS


def test_less_device_memory_costs_boundaries_then_depth_then_micro_batches():
    seen = []
    for mib in range(6000, 0, -20):
        try:
            chosen = plan(gpu=f"{mib}MiB")
        except DoesNotFit:
            break
        assert chosen.device_peak_bytes <= mib * MIB
        seen.append((-chosen.sizes.micro_batch_size, -chosen.sizes.window_depth, chosen.sizes.host_boundaries))
    assert seen == sorted(seen)  # each in the order of preference
    assert {boundaries for _, _, boundaries in seen} >= {0, BLOCKS}
    assert {-depth for _, depth, _ in seen} == {2, 3} and {-micro for micro, _, _ in seen} >= {1, 8}


def test_a_boundary_goes_to_the_host_only_when_the_device_is_full():
    peak = plan(recompute_all=True).device_peak_bytes
    assert plan(gpu=str(peak)).sizes.host_boundaries == 0
    assert plan(gpu=str(peak - 1)).sizes.host_boundaries > 0


def test_memory_that_is_left_saves_recomputation():
    kept = [plan(gpu=f"{gib}GiB").sizes.kept for gib in range(2, 40)]
    assert kept == sorted(kept) and kept[0] == 0 and kept[-1] == BLOCKS and len(set(kept)) > BLOCKS / 2
    assert plan(gpu="39GiB", recompute_all=True).sizes.kept == 0


# ---- numbers


def test_a_plan_says_what_its_parts_say():
    chosen = plan()
    table = chosen.model.layouts[chosen.model.embedding]  # the largest unit: it is read into memory as it is in files
    named = host_bytes(chosen.model, chosen.sizes, torch.bfloat16)
    assert chosen.host == {"process": 500 * MIB, **named, "loading": 2 * table.numel}
    assert chosen.device == device_bytes(chosen.model, work_of(1024), chosen.sizes, torch.bfloat16)
    assert chosen.device_peak_bytes == max(sum(phase.values()) for phase in chosen.device.values())


def test_state_is_twelve_bytes_a_parameter():
    chosen = plan()
    assert chosen.model.parameters == 12 * BLOCKS * WIDTH**2 + VOCABULARY * WIDTH + WIDTH
    assert chosen.host["weights and optimizer state"] == 12 * chosen.model.parameters


def test_bf16_moments_leave_eight_bytes_a_parameter():
    chosen, fp32 = plan(optimizer_state="bf16"), plan()
    assert chosen.host["weights and optimizer state"] == 8 * chosen.model.parameters
    assert replace(chosen.sizes, optimizer_state="fp32") == fp32.sizes and chosen.device == fp32.device


def test_device_memory_does_not_grow_with_micro_batches_but_by_their_boundaries_and_ids():
    def parts(batch_size: int) -> dict[str, int]:
        return plan(batch_size=batch_size, micro_batch_size=8, recompute_all=True).device["backward"]

    few, many = parts(16), parts(32)
    assert {name for name in few if few[name] != many[name]} <= {
        "activations",
        "inputs",
        "embedding rows",
        "row gradients",
    }


def test_on_the_cpu_computation_counts_in_host_memory():
    chosen = plan(gpu=None)
    assert chosen.device_budget_bytes is None
    assert chosen.host["computation"] == max(sum(phase.values()) for phase in chosen.device.values())


def test_as_json_is_plain_and_complete():
    values = plan().as_json()
    assert values["parameters"] == model_of().parameters and values["sizes"]["window_depth"] == 3
    assert values["host_bytes"]["total"] == sum(
        size for name, size in values["host_bytes"].items() if name not in ("total", "budget")
    )
    assert values["device_bytes"]["peak"] == plan().device_peak_bytes and values["device_bytes"]["budget"] == 24 * GIB


# ---- the disk


def test_nothing_goes_to_disk_where_host_memory_holds_it():
    chosen = plan(disk="1TiB")
    assert chosen.sizes == plan().sizes and chosen.sizes.disk_blocks == 0 and chosen.disk_peak_bytes == 0


def test_as_few_blocks_as_needed_go_to_disk():
    without = plan()
    assert without.sizes.host_boundaries == 0  # so nothing but the disk can save host memory
    seen = []
    for mib in range(without.host_peak_bytes // MIB, 0, -50):
        try:
            chosen = plan(host=f"{mib}MiB", disk="1TiB")
        except DoesNotFit:
            break
        assert chosen.host_peak_bytes <= mib * MIB
        if chosen.sizes.disk_buffers < BUFFERS:
            assert seen[-1] == BLOCKS  # before that, all is on disk
            break
        assert replace(chosen.sizes, disk_blocks=0) == without.sizes
        seen.append(chosen.sizes.disk_blocks)
        if seen[-1]:
            fewer = host_bytes(chosen.model, replace(chosen.sizes, disk_blocks=seen[-1] - 1), torch.bfloat16)
            assert chosen.host["process"] + sum(fewer.values()) + chosen.host["loading"] > mib * MIB
    assert seen == sorted(seen) and seen[-1] == BLOCKS and len(set(seen)) > BLOCKS / 3


def test_a_block_on_disk_takes_ten_bytes_a_parameter_and_leaves_two():
    chosen = plan(host="2500MiB", disk="1TiB")
    block, count = 12 * WIDTH**2, chosen.sizes.disk_blocks
    assert count > 0
    assert chosen.disk["optimizer state"] == chosen.disk_peak_bytes == count * 10 * block
    assert chosen.host["disk buffers"] == BUFFERS * 10 * block
    assert chosen.host["weights and optimizer state"] == 12 * chosen.model.parameters - count * 10 * block
    in_json = chosen.as_json()["disk_bytes"]
    assert in_json["optimizer state"] == in_json["total"] == count * 10 * block and in_json["budget"] == 2**40


def test_too_little_disk():
    error = refusal(host="2500MiB", disk="100MiB")
    assert re.match(
        r"host memory does with optimizer state of \d+ of 12 blocks .*on disk, which needs .* budget is 100 MiB",
        error.message,
    )
    assert plan(host="2500MiB", disk=asked_for("budget.disk", error))


def test_too_little_host_memory_even_with_a_disk():
    error = refusal(host="1GiB", disk="1TiB")
    assert plan(host=asked_for("budget.host", error), disk="1TiB")
    assert "offload_dir" not in error.hint


def test_a_disk_is_offered_where_it_would_do():
    error = refusal(host="2500MiB")
    wanted = re.search(r"budget.offload_dir: a directory on a fast local disk with (\S+) free", error.hint)
    assert wanted is not None and plan(host="2500MiB", disk=wanted[1])
    assert "\n  budget.offload_dir" not in refusal(host="1GiB").hint  # not by itself


# ---- refusals


def test_too_little_host_memory():
    error = refusal(host="3GiB")
    assert re.match(
        r"host memory needs [34]\.\d GiB, and its budget is 3\.0 GiB; largest: weights and optimizer state",
        error.message,
    )
    assert "\n  max_grad_norm: null\n" in error.hint and "\n  optimizer_state: bf16\n" in error.hint


def test_what_is_set_already_is_not_named():
    assert "max_grad_norm" not in refusal(host="2GiB", clipping=False).hint
    hint = refusal(host="1GiB", clipping=False, optimizer_state="bf16").hint
    assert "max_grad_norm" not in hint and "optimizer_state" not in hint


def test_too_little_device_memory():
    error = refusal(gpu="300MiB")
    assert re.match(r"the GPU needs \d+ MiB, and its budget is 300 MiB; largest: \w+", error.message)
    assert plan(gpu=asked_for("budget.gpu", error))


def test_pinned_sizes_that_do_not_fit_are_to_be_unpinned():
    error = refusal(gpu="2GiB", micro_batch_size=32, window_depth=12)
    assert "\n  leave micro_batch_size to the planner\n" in error.hint  # the window does not stand in the way
    assert plan(gpu="2GiB", window_depth=12)


def asked_for(budget: str, error: DoesNotFit) -> str:
    """The size of the remedy that is this budget alone."""
    (size,) = re.findall(rf"^\s*{budget}: (\w[\w.]*)$", f"  {error.hint}", re.MULTILINE)
    return size


def test_boundaries_stay_on_the_device_when_only_the_host_is_short():
    generous = plan(gpu="24GiB")
    host = generous.host_peak_bytes
    assert plan(host=str(host)).sizes == generous.sizes
    error = refusal(host=str(host - 400 * MIB))
    (needed,) = re.findall(r"host memory needs ([\d.]+ \w+),", error.message)
    assert parse_bytes(needed) <= host + GIB / 20  # as rounded; not that of a plan which also moves activations there


def test_sizes_multiply():
    sizes = Sizes(2, 3, 4, max_length=10, gradient_slots=1, host_boundaries=0, head_chunk=16)
    assert (sizes.micro_batch_tokens, sizes.step_tokens, sizes.step_indices) == (30, 120, 7 * 120 + 4)
    assert replace(sizes, micro_batches=1).step_tokens == 30
