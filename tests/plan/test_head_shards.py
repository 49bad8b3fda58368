"""A head that does not fit as a whole is planned in shards, and only then."""

from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import subject

from slideformer.engine.measure import measure_work, model_sizes
from slideformer.errors import DoesNotFit
from slideformer.memory.window import slot_numel
from slideformer.plan.footprint import ModelSizes, Work, device_bytes
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan

BF16 = torch.bfloat16
WORK = Work(block_bytes=1 << 12, block_fixed_bytes=1 << 12, inputs_bytes=64, logit_bytes=6 * 8192, workspace_bytes=0)
MODEL = model_sizes(subject(tiny_model("llama", vocab_size=8192)).decoder)


def planned(gpu_bytes: int, model: ModelSizes = MODEL) -> Plan:
    workload = Workload(batch_size=1, max_length=16, clipping=False, recompute_all=True, resident=0)
    return make_plan(model, WORK, workload, BF16, 1 << 40, gpu_bytes, process_bytes=0)


def test_the_whole_head_where_it_fits():
    assert planned(1 << 40).sizes.head_shards == 1


def test_as_few_shards_as_fit():
    whole = planned(1 << 40).device_peak_bytes
    least = min(budget for budget in range(0, whole, whole // 40) if fits(budget))
    few, many = planned(int(whole * 0.8)).sizes.head_shards, planned(least).sizes.head_shards
    assert 1 < few <= many
    assert MODEL.layouts[MODEL.head].numel // (many // 2) > slot_numel(MODEL.block_layouts)
    with pytest.raises(DoesNotFit):
        planned(int(whole * 0.8), replace(MODEL, head_shards_exactly=False))


def fits(budget: int) -> bool:
    try:
        return planned(budget).device_peak_bytes <= budget
    except DoesNotFit:
        return False


def test_more_shards_take_less_at_the_loss_and_evaluation_has_its_own_phase():
    sizes = planned(1 << 40).sizes
    phases = {k: device_bytes(MODEL, WORK, replace(sizes, head_shards=k), BF16) for k in (1, 2, 4, 8)}
    at_the_loss = [sum(phase["head and loss"].values()) for phase in phases.values()]
    assert at_the_loss == sorted(at_the_loss, reverse=True) and len(set(at_the_loss)) == 4
    assert "evaluation" not in phases[1]
    assert phases[2]["evaluation"]["head"] == MODEL.layouts[MODEL.head].numel * 2


def test_the_answer_comes_with_the_models_sizes():
    decoder = subject(tiny_model("gemma2")).decoder
    assert model_sizes(decoder).head_shards_exactly
    assert measure_work(decoder, 16, torch.float32).logit_bytes > 0
