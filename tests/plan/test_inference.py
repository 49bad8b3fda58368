"""The plan of generation: all prompts at once if they fit, then the deepest window."""

import re
from dataclasses import replace

import pytest
import torch
from made_up_plans import model_of

from slideformer.errors import DoesNotFit
from slideformer.plan.footprint import KeyValueSizes
from slideformer.plan.inference import InferencePlan, InferenceWork, plan_inference
from slideformer.plan.machine import DEVICE_MARGIN
from slideformer.units import GIB, MIB, parse_bytes

MODEL = model_of()
CACHE = KeyValueSizes(token_bytes=8 * 1024, fixed_bytes=0, layer_token_bytes=1024)
WORK = InferenceWork(MIB, MIB, 1024, 0, CACHE)


def plan(device: int | None, prompts: int = 8, host: int = 1000 * GIB, work: InferenceWork = WORK) -> InferencePlan:
    return plan_inference(MODEL, work, prompts, 128, 256, torch.bfloat16, host, device, process_bytes=0)


def test_with_memory_to_spare_every_block_stays():
    chosen = plan(1000 * GIB)
    assert chosen.sizes.window_depth == len(MODEL.blocks) and chosen.sizes.sequences == 8
    assert "all blocks stay" in str(chosen)


def test_less_memory_makes_the_window_shallower_before_prompts_take_turns():
    least = sum(plan(1000 * GIB).device.values())
    seen = []
    while True:
        try:
            chosen = plan(least)
        except DoesNotFit:
            break
        seen.append((chosen.sizes.sequences, chosen.sizes.window_depth))
        assert sum(chosen.device.values()) <= least
        least = sum(chosen.device.values()) - 1
    assert seen == sorted(seen, reverse=True) and seen[0][0] == 8 and seen[-1] == (1, 2)


def test_keys_and_values_grow_with_prompts_and_tokens():
    assert plan(1000 * GIB).device["keys and values"] == pytest.approx(8 * 256 * 9 * 1024, abs=1)
    assert plan(1000 * GIB, work=replace(WORK, cache=None)).device["keys and values"] == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(DoesNotFit, match="of GPU memory, and its budget is 1.0 MiB") as caught:
        plan(MIB)
    (least,) = re.findall(r"give budget.gpu at least (\S+)", caught.value.hint)
    assert plan(int(parse_bytes(least) * (1 - DEVICE_MARGIN)))
    with pytest.raises(DoesNotFit, match="of host memory"):
        plan(1000 * GIB, host=MIB)
