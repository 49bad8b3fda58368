"""The schedule that predictions are made of is the engine's: both take the same time where all speeds are given."""

import random
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import Subject, batch_at, hyper_at, make_records, subject, tiny_engine
from virtual_time import VirtualTime

from slideformer.engine.layouts import layouts
from slideformer.engine.submission import ON_DEVICE_FIRST
from slideformer.engine.updates import Update
from slideformer.plan.schedule import play
from slideformer.plan.sizes import Sizes
from slideformer.plan.step_work import StepWork

BLOCKS, LENGTH, SEQUENCES = 10, 24, 8
STEPS = 4  # from the third on, one is like the other
RECORDS = make_records(SEQUENCES, lengths=(LENGTH, LENGTH))
TABLE, ROWS = 80.0, 5.0  # updates of the embedding, where it is not resident


@dataclass(frozen=True)
class Speeds:
    """Seconds of one block and micro-batch, of the head, of copies of a block and of a boundary, of an update, and of
    copies of a forward's outputs."""

    forward: float
    backward: float
    head: float
    fetch: float
    send: float
    boundary: float
    update: float
    outputs: float = 0.0


@dataclass(frozen=True)
class Case:
    speeds: Speeds
    sizes: Sizes
    clipping: bool

    @staticmethod
    def drawn(seed: int) -> "Case":
        draw = random.Random(seed)
        speeds = Speeds(
            draw.uniform(2, 8), draw.uniform(6, 25), draw.uniform(10, 60), draw.choice([1, 4, 8]),
            draw.choice([1, 4, 8]), draw.choice([0.5, 2]), draw.choice([1, 8, 21, 40]),
        )  # fmt: skip
        clipping, micro_batches = draw.random() < 0.5, draw.choice([1, 1, 2])
        sizes = Sizes(
            window_depth=draw.choice([2, 3, 4]), micro_batch_size=SEQUENCES // micro_batches,
            micro_batches=micro_batches, max_length=LENGTH, host_boundaries=draw.choice([0, 5, BLOCKS]),
            gradient_slots=BLOCKS if clipping else draw.choice([2, 4, 8]), head_chunk=2048,
            resident=draw.choice([0, 0, 3, 6]), resident_ends=draw.random() < 0.5, resident_gradients=clipping,
        )  # fmt: skip
        return Case(speeds, sizes, clipping)

    @staticmethod
    def with_outputs(seed: int) -> "Case":
        """Some forwards' outputs go to host memory."""
        drawn, draw = Case.drawn(seed), random.Random(1000 + seed)
        most = BLOCKS * drawn.sizes.micro_batches
        sizes = replace(drawn.sizes, host_outputs=draw.choice([1, 3, most // 2, most]), host_output_bytes=2**20)
        return replace(drawn, speeds=replace(drawn.speeds, outputs=draw.choice([1, 4, 9])), sizes=sizes)


@pytest.mark.parametrize("seed", range(30))
def test_the_engine_takes_the_time_of_the_schedule(seed: int):
    case = Case.drawn(seed)
    assert engine_seconds(case) == pytest.approx(play(step_work(case)).seconds, rel=0.03)


@pytest.mark.parametrize("seed", range(30))
def test_it_does_so_with_outputs_in_host_memory(seed: int):
    case = Case.with_outputs(seed)
    assert engine_seconds(case) == pytest.approx(play(step_work(case)).seconds, rel=0.03)


def step_work(case: Case) -> StepWork:
    sizes, speeds, nothing = case.sizes, case.speeds, [0.0] * BLOCKS
    m, on_host = sizes.micro_batches, sizes.boundaries_on_host(BLOCKS)
    boundaries = [speeds.boundary * m if i < on_host else 0.0 for i in range(BLOCKS)]
    outputs = [speeds.outputs * sizes.forwards_of_layer_on_host(i, BLOCKS) for i in range(BLOCKS)]
    back = [speeds.outputs * sizes.fetched_forwards_of_layer(i, BLOCKS) for i in range(BLOCKS)]
    on_cpu = 0.0 if sizes.resident_ends else 1.0
    return StepWork(
        forward=[speeds.forward * m] * BLOCKS, backward=[speeds.backward * m] * BLOCKS, head=speeds.head * m,
        call_forward=nothing, call_backward=nothing,
        fetch=[speeds.fetch] * BLOCKS, fetch_head=0.0, fetch_inputs=0.0, send=[speeds.send] * BLOCKS, send_head=0.0,
        save=boundaries, load=boundaries, save_outputs=outputs, load_outputs=back,
        micro_batches=m, update=[speeds.update] * BLOCKS, update_head=0.0,
        update_table=on_cpu * TABLE, update_rows=on_cpu * ROWS, read=nothing, write=nothing,
        read_weights=nothing, write_boundary=nothing, read_boundary=nothing,
        resident=sizes.resident, buffers=4, weight_buffers=4, boundary_buffers=4, depth=sizes.window_depth,
        slots=max(1, sizes.slots_for(BLOCKS)),
        clipping=case.clipping, tied=True,
    )  # fmt: skip


def engine_seconds(case: Case) -> float:
    """Of a step of the engine: from the end of one backward to that of the next."""
    of, speeds, ends = tiny(), case.speeds, []
    numel = layouts(of.decoder)[of.decoder.block_names[0]].trained_numel
    time = VirtualTime(
        partial(compute, speeds), partial(h2d, speeds), partial(d2h, speeds, numel), partial(update, speeds)
    )
    with tiny_engine(of, case.sizes, torch.bfloat16, time.lanes) as engine:
        for step in range(1, STEPS + 1):
            engine.train_step(batch_at(RECORDS, SEQUENCES, 0), hyper_at(step), 1.0 if case.clipping else None)
            ends.append(time.compute.free)
        engine.drain()
    return ends[-1] - ends[-2]


@cache
def tiny() -> Subject:
    shape = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 4, "vocab_size": 128}
    return subject(tiny_model("qwen3", num_hidden_layers=BLOCKS, **shape))


def compute(speeds: Speeds, work: Any, _: Any) -> float:
    names = {"block_recorded": speeds.forward, "block_backward": speeds.backward, "head_loss_and_gradient": speeds.head}
    return names.get(work.__name__, 0.0) if hasattr(work, "__name__") else 0.0


def h2d(speeds: Speeds, work: Any, given: tuple[Any, ...]) -> float:
    """A block (by its number), a boundary (flat), or what takes no time: ids, rows, the shell, the head."""
    if getattr(work, "__name__", "") == "copy_outputs":
        return speeds.outputs
    if isinstance(given[0], int):
        return 0.0 if work.__name__ == "copy_shell" else speeds.fetch
    is_boundary = work.__name__ == "copy_async" and given[0].ndim == 1 and given[0].is_floating_point()
    return speeds.boundary if is_boundary else 0.0


def d2h(speeds: Speeds, block_numel: int, work: Any, given: tuple[Any, ...]) -> float:
    """A boundary (in its shape), a block's gradient, or what takes no time: the loss, norms, rows, the head's."""
    if work.__name__ == "copy_outputs":
        return speeds.outputs
    if work.__name__ != "copy_async" or given[0].ndim == 0:
        return 0.0
    if given[0].ndim == 3:
        return speeds.boundary
    return speeds.send if given[0].numel() == block_numel else 0.0


def update(speeds: Speeds, asked: Update) -> float:
    if asked.apply is None or asked.next_use == ON_DEVICE_FIRST:
        return 0.0
    if "layers" in asked.unit:
        return speeds.update
    name = getattr(asked.apply, "func", asked.apply).__name__
    return {"update_rest": TABLE, "update_rows": ROWS}.get(name, 0.0)
