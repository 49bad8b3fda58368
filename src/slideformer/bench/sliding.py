"""Measures the sliding engine on one case: builds it with random weights, trains a few steps, reads the counters."""

import json
import sys
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from slideformer.bench.case import Case
from slideformer.bench.model_config import config_of
from slideformer.bench.model_flops import step_flops
from slideformer.data.batches import Batch, collate
from slideformer.data.examples import Example
from slideformer.engine.device import device_and_dtype
from slideformer.engine.engine import Engine
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.engine.operations import count_operations
from slideformer.engine.random_weights import random_weights
from slideformer.engine.step_result import StepResult
from slideformer.errors import SlideFormerError
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.lanes.lanes import Lanes, lanes_for
from slideformer.lanes.measured import BusySpans, measured, take_spans
from slideformer.listeners.metrics import host_peak_bytes
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.machine import Machine, disk_budget_bytes, resident_bytes
from slideformer.plan.operations import ModelOperations, full_step
from slideformer.plan.pace import pace_of_full_steps
from slideformer.plan.piece_seconds import NAMES
from slideformer.plan.pins import Pins
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.plan.probe import event_seconds, matmul_rate, wall_seconds
from slideformer.plan.rates import MachineRates, cached_rates
from slideformer.plan.timing import predict


def measure(case: Case) -> dict[str, Any]:
    """Tokens per second, bytes planned and measured, busy lanes, MFU; see `slideformer.bench.table` for the names.

    Raises:
        DoesNotFit: the plan says so.
        torch.OutOfMemoryError: the plan was wrong: a GPU budget is enforced.
    """
    bench = Subject(case)
    enforce(case.gpu_budget_bytes)
    plan = bench.plan(case.sequences)
    started = time.perf_counter()
    lanes = measured(lanes_for(bench.device))
    with bench.engine(plan, lanes) as engine:
        engine.load(random_weights(engine, bench.config, 0))
        loading = time.perf_counter() - started
        results, elapsed, busy = bench.train(engine)
        return {
            **bench.speed(elapsed, busy, results[-1].optimizer_seconds),
            **peak_bytes(bench.device, plan),
            "loading_seconds": loading,
            "losses": [results[0].loss, results[-1].loss],
            "plan": plan.as_json()["sizes"],
            "planned": plan.timing and plan.timing.as_json(),
        }


class Subject:
    """The model of a case taken apart, and how it is trained."""

    def __init__(self, case: Case):
        self.case = case
        self.config = config_of(case)
        self.device, self.dtype = device_and_dtype(case.device, "auto")
        self.offload_dir = Path(case.offload_dir) if case.offload_dir else None
        self.matmul_flops = case.matmul_flops or measured_matmul_flops(self.device, self.dtype)
        self.fused = choose_kernels("auto", self.device.type) == "liger"
        self.decoder = Decoder(self.config, self.device, "sdpa", apply_liger if self.fused else None)

    @cached_property
    def operations(self) -> ModelOperations | None:
        plain = Decoder(self.config, torch.device("cpu"), "sdpa")
        return count_operations(plain, self.dtype, self.fused)

    def plan(self, sequences: int) -> Plan:
        """The plan for steps of so many sequences, with seconds where this machine was probed.

        Raises:
            DoesNotFit: there is none.
        """
        case = self.case
        workload = Workload(
            sequences, case.length, case.clipping, case.micro_batch_size, case.window_depth,
            resident=case.resident, kept=case.kept, optimizer_state=case.optimizer_state, pins=Pins.named_in(case),
        )  # fmt: skip
        machine = Machine.measure(self.device)
        rates = TypeAdapter(MachineRates).validate_python(case.rates) if case.rates else cached_rates()
        if rates is not None and rates.has_gpu != (self.device.type != "cpu"):
            rates = None
        pace = pace_of_full_steps(self.operations, rates, sequences, case.length, self.dtype, case.clipping)
        plan = make_plan(
            model_sizes(self.decoder), measure_work(self.decoder, case.length, self.dtype), workload, self.dtype,
            case.host_budget_bytes or machine.host_bytes, machine.allocatable_bytes(case.gpu_budget_bytes),
            resident_bytes(), disk_budget_bytes(self.offload_dir, case.disk_budget_bytes), pace,
        )  # fmt: skip
        if pace is None:
            return plan
        tokens = pace.tokens_of(plan.sizes.micro_batch_size)
        timing = predict(plan.model, pace.operations, plan.sizes, tokens, pace.rates, self.dtype, case.clipping, 1)
        return replace(plan, timing=timing)

    def engine(self, plan: Plan, lanes: Lanes) -> Engine:
        """Still without weights."""
        case = self.case
        return Engine(self.decoder, plan.sizes, self.dtype, lanes, threads=case.threads, offload_dir=self.offload_dir)

    def batch(self, step: int) -> Batch:
        """Random tokens, all of them trained."""
        generator = torch.Generator().manual_seed(step)
        shape = (self.case.sequences, self.case.length)
        ids = torch.randint(0, self.decoder.vocabulary, shape, generator=generator, dtype=torch.int32)
        return collate([Example(k, row, row) for k, row in enumerate(ids)], 0)

    def step(self, engine: Engine, batch: Batch, number: int) -> StepResult:
        """One step, counted from 1."""
        hyper = AdamWStep(1e-5, 0.9, 0.999, 1e-8, 0.0, number)
        return engine.train_step(batch, hyper, 1.0 if self.case.clipping else None)

    def train(self, engine: Engine) -> tuple[list[StepResult], float, BusySpans]:
        """(all results, seconds from the first counted step until the last update has run, lanes in that time)."""
        case, results = self.case, []
        batches = [self.batch(step) for step in range(1, case.warm_up + case.steps + 1)]
        self.reset_peaks()
        begun = time.perf_counter()
        for step, batch in enumerate(batches, 1):
            if step == case.warm_up + 1:
                engine.drain()
                take_spans(engine.lanes)
                begun = time.perf_counter()
            results.append(self.step(engine, batch, step))
        engine.drain()
        elapsed = time.perf_counter() - begun
        return results, elapsed, take_spans(engine.lanes)

    def reset_peaks(self) -> None:
        """What the GPU needed to plan and to load does not count."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def speed(self, elapsed: float, busy: BusySpans, optimizer_seconds: float) -> dict[str, Any]:
        case, seconds = self.case, elapsed / self.case.steps
        return {
            "tokens_per_second": case.tokens / seconds,
            "step_seconds": seconds,
            "mfu": self.mfu(seconds),
            "matmul_flops": self.matmul_flops,
            "compute_busy": busy.compute_seconds / elapsed,
            "h2d_busy": busy.h2d_seconds / elapsed,
            "d2h_busy": busy.d2h_seconds / elapsed,
            "optimizer_seconds": optimizer_seconds,
        }

    def mfu(self, step_seconds: float) -> float | None:
        """Model operations per second over the measured matmul rate; None for a model that is not counted."""
        if self.operations is None:
            return None
        tokens = full_step(self.case.sequences, self.case.length)
        return step_flops(self.operations, tokens) / step_seconds / self.matmul_flops


def measured_matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Per second, sustained; measured by the probe, or now."""
    rates = cached_rates()
    if rates is not None and rates.has_gpu == (device.type != "cpu") and NAMES[dtype] in rates.compute.matmul_flops:
        return rates.compute.matmul_flops[NAMES[dtype]]
    return matmul_rate(device, dtype, event_seconds if device.type == "cuda" else wall_seconds)


def enforce(gpu_budget_bytes: int | None) -> None:
    """PyTorch refuses what is beyond the budget."""
    if gpu_budget_bytes and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_budget_bytes / total))


def peak_bytes(device: torch.device, plan: Plan) -> dict[str, Any]:
    """The host's since the process began, the GPU's since the last reset, each with the plan's beside it."""
    result: dict[str, Any] = {
        "parameters": plan.model.parameters,
        "host_peak_bytes": host_peak_bytes(),
        "host_planned_bytes": plan.host_peak_bytes,
    }
    if device.type == "cuda":
        result["gpu_allocated_bytes"] = torch.cuda.max_memory_allocated()
        result["gpu_reserved_bytes"] = torch.cuda.max_memory_reserved()
        result["gpu_planned_bytes"] = plan.device_peak_bytes
        result["gpu_allocation_retries"] = torch.cuda.memory_stats().get("num_alloc_retries", 0)
    return result


def measure_or_say(case: Case) -> dict[str, Any]:
    """What `measure` returns; of an error that says what to do, that instead of a traceback."""
    try:
        return measure(case)
    except SlideFormerError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    print(json.dumps(measure_or_say(Case(**json.loads(sys.argv[1])))))
