"""The choice by seconds: it fits, nothing that fits is much shorter, and it is the same each time."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Literal

import pytest
import torch
from made_up_machines import machine
from made_up_plans import BLOCKS, model_of, plan, work_of
from made_up_timings import MODEL

from slideformer.errors import ConfigError, DoesNotFit
from slideformer.memory.host_outputs import FIXED_BYTES
from slideformer.plan.choice import halvings
from slideformer.plan.footprint import ModelSizes
from slideformer.plan.pace import Pace, pace_of_full_steps
from slideformer.plan.pins import Pins
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.plan.sizes import Sizes
from slideformer.units import GIB, MIB

BF16 = torch.bfloat16
SEARCHED = 1.01  # not all numbers of resident blocks are tried


def pace_of(sequences: int = 32, clipping: bool = False) -> Pace:
    pace = pace_of_full_steps(MODEL, machine(), sequences, 1024, BF16, clipping)
    assert pace is not None
    return pace


def chosen_of(gpu: str, sequences: int = 32, clipping: bool = False, host: str = "64GiB", **workload: object) -> Plan:
    asked = {"resident": None, "batch_size": sequences, "clipping": clipping, **workload}
    return plan(host, gpu, pace=pace_of(sequences, clipping), **asked)


def seconds_of(chosen: Plan, sequences: int, clipping: bool = False) -> float:
    return pace_of(sequences, clipping).seconds(chosen.model, chosen.sizes, BF16)


@pytest.mark.parametrize("clipping", [False, True])
@pytest.mark.parametrize("gpu", ["1500MiB", "2GiB", "4GiB", "40GiB"])
@pytest.mark.parametrize("sequences", [1, 8, 64])
def test_nothing_that_is_pinned_by_hand_is_shorter(sequences: int, gpu: str, clipping: bool):
    chosen = chosen_of(gpu, sequences, clipping)
    assert chosen.fits_device and chosen.fits_host
    best = seconds_of(chosen, sequences, clipping)
    for resident, kept in product(range(0, BLOCKS + 1, 3), (None, 0, BLOCKS // 2)):
        try:
            other = plan("64GiB", gpu, batch_size=sequences, clipping=clipping, resident=resident, kept=kept)
        except DoesNotFit:
            continue
        if other.fits_device and other.sizes.resident == resident:
            assert best <= seconds_of(other, sequences, clipping) * SEARCHED


def test_small_steps_spend_memory_on_residency_and_large_ones_on_keeping():
    small, large = chosen_of("3GiB", 1).sizes, chosen_of("8GiB", 64).sizes
    assert small.resident > BLOCKS / 2
    assert large.kept and large.resident < BLOCKS / 2


def test_with_memory_for_all_nothing_slides_and_nothing_is_recomputed():
    fast = replace(machine().compute, memory_bytes=20e12)  # so that updates there cost next to nothing
    pace = pace_of_full_steps(MODEL, replace(machine(), compute=fast), 4, 1024, BF16, False)
    sizes = plan("64GiB", "60GiB", pace=pace, batch_size=4, clipping=False, resident=None).sizes
    assert (sizes.resident, sizes.resident_ends, sizes.kept, sizes.host_boundaries) == (BLOCKS, True, BLOCKS, 0)


def test_more_memory_is_never_slower():
    seconds = [seconds_of(chosen_of(f"{gib}GiB", 8), 8) for gib in (2, 3, 4, 6, 8, 12)]
    assert all(more <= less * SEARCHED for less, more in pairwise(seconds))
    assert seconds[-1] < 0.8 * seconds[0]


def test_the_same_question_has_the_same_answer():
    assert chosen_of("4GiB").sizes == chosen_of("4GiB").sizes


def test_residency_makes_fit_what_host_memory_does_not_hold():
    short = "2500MiB"
    sizes = chosen_of("6GiB", 8, host=short).sizes
    assert sizes.resident
    without_rates = plan(short, "6GiB", batch_size=8, clipping=False, resident=None)
    assert without_rates.sizes.resident and without_rates.fits_host and without_rates.fits_device


def test_without_rates_a_rule_of_thumb_decides_by_the_tokens_of_a_step():
    counts = [plan("64GiB", "20GiB", batch_size=size, resident=None).sizes.resident for size in (1, 8, 16, 24)]
    assert counts == sorted(counts, reverse=True) and counts[0] == BLOCKS and counts[-1] == 0 and counts[1] != counts[2]


def test_what_is_pinned_stays():
    sizes = chosen_of("8GiB", resident=3, kept=2).sizes
    assert (sizes.resident, sizes.kept) == (3, 2)


@pytest.mark.parametrize("pace", [None, pace_of()])
def test_a_pin_that_does_not_fit_is_refused_with_its_numbers(pace: Pace | None):
    with pytest.raises(DoesNotFit, match=r"the GPU needs .* resident states") as caught:
        plan(gpu="2GiB", clipping=False, resident=BLOCKS, pace=pace)
    assert "leave resident to the planner" in caught.value.hint
    with pytest.raises(DoesNotFit, match=r"the GPU needs .* kept for backward"):
        plan(gpu="4GiB", clipping=False, kept=BLOCKS, pace=pace)


def test_nothing_is_resident_where_the_cpu_computes():
    assert plan(gpu=None, resident=None, batch_size=1).sizes.resident == 0
    with pytest.raises(ConfigError, match="only what computes in bf16 on a GPU"):
        plan(gpu=None, resident=2)


def outputs_of(host_outputs: int | Literal["auto"] | None, host: int = 64 * GIB) -> Plan:
    """A plan for 2 GiB of GPU memory, where nearly all is recomputed."""
    workload = Workload(32, 1024, False, pins=Pins(host_outputs=host_outputs))
    work = replace(work_of(1024), kept_outputs_bytes=15 * MIB)
    return make_plan(model_of(), work, workload, BF16, host, 2 * GIB, 500 * MIB, None, pace_of())


def test_outputs_go_to_host_memory_where_that_is_asked_for_and_shortens_the_step():
    none, chosen = outputs_of(None), outputs_of("auto")
    assert none.sizes.host_outputs == 0
    assert 0 < chosen.sizes.host_outputs <= chosen.sizes.recomputed_forwards(BLOCKS)
    assert seconds_of(chosen, 32, False) < seconds_of(none, 32, False)
    place = chosen.sizes.host_output_bytes
    assert place == 15 * MIB * chosen.sizes.micro_batch_size + FIXED_BYTES
    assert chosen.host["kept outputs"] == chosen.sizes.host_outputs * place
    for count in (1, chosen.sizes.recomputed_forwards(BLOCKS)):
        assert seconds_of(chosen, 32, False) <= seconds_of(outputs_of(count), 32, False) * SEARCHED


def test_they_go_there_only_as_far_as_host_memory_reaches():
    chosen = outputs_of("auto")
    less = outputs_of("auto", host=chosen.host_peak_bytes - chosen.host["kept outputs"] // 2)
    assert less.fits_host and less.host["kept outputs"] < chosen.host["kept outputs"]


@pytest.mark.parametrize("micro_batches", [1, 3, 4])
def test_they_are_evenly_spread(micro_batches: int):
    for count in range(BLOCKS * micro_batches + 2):
        sizes = Sizes(2, 8, micro_batches, 64, 8, 0, 64, kept=2, kept_outputs=1, host_outputs=count)
        places = sizes.outputs_on_host(BLOCKS)
        assert len(places) == sizes.forwards_on_host(BLOCKS) == min(count, (BLOCKS - 3) * micro_batches)
        assert all(i < BLOCKS - 3 for i, _ in places)
        by_layer = [sum(i == layer for i, _ in places) for layer in range(BLOCKS)]
        assert by_layer == [sizes.forwards_of_layer_on_host(i, BLOCKS) for i in range(BLOCKS)]
        back = [sizes.fetched_forwards_of_layer(i, BLOCKS) for i in range(BLOCKS)]
        assert sum(back) == max(0, len(places) - 2) and all(
            some <= all_ for some, all_ in zip(back, by_layer, strict=True)
        )
        assert max(by_layer[: BLOCKS - 3]) - min(by_layer[: BLOCKS - 3]) <= 1


def test_a_hundred_layers_are_planned_with_few_schedules(monkeypatch: pytest.MonkeyPatch):
    """A second or two; a schedule of a hundred layers takes about 10 ms."""
    played: list[Sizes] = []
    monkeypatch.setattr(Pace, "seconds", counting(Pace.seconds, played))
    pace = pace_of_full_steps(replace(MODEL, blocks=MODEL.blocks[:1] * 100), machine(), 32, 1024, BF16, False)
    work = replace(work_of(1024), kept_outputs_bytes=15 * MIB)
    make_plan(model_of(100), work, Workload(32, 1024, False), BF16, 12 * GIB, 8 * GIB, 0, 60 * GIB, pace)
    assert 10 < len(played) < 200


def counting(seconds: Callable[..., float], played: list[Sizes]) -> Callable[..., float]:
    def counted(self: Pace, model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> float:
        played.append(sizes)
        return seconds(self, model, sizes, dtype)

    return counted


def test_halvings_are_at_most_half_of_the_one_before():
    assert halvings([8, 6, 4, 3, 2, 1]) == [8, 4, 2]
