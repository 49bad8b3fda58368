"""A model's directory -> an engine that is ready to train, and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch

from slideformer.engine import engine as core
from slideformer.engine.device import device_and_dtype
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.engine.operations import count_operations
from slideformer.engine.parity import check_parity
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.models.architecture import Decoder
from slideformer.models.hub import read_config, resolve
from slideformer.models.meta import build_on_meta
from slideformer.models.stream_in import stream_in
from slideformer.models.stream_out import stream_out
from slideformer.plan.machine import Machine, disk_budget_bytes, resident_bytes
from slideformer.plan.pace import Pace, pace_of_full_steps
from slideformer.plan.pins import Pins
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.plan.rates import cached_rates
from slideformer.plan.sizes import OptimizerState
from slideformer.units import parse_bytes


@dataclass(frozen=True)
class Origin:
    """Where an engine's model came from.

    Attributes:
        path: the model's directory.
        plan: what was planned for the engine.
    """

    path: Path
    config: Any
    plan: Plan
    trust_remote_code: bool


class Engine(core.Engine):
    """The engine, made from a model's directory and saved as one; built by hand, it takes what its base class does.

    Attributes:
        origin: the model's directory and the plan, of an engine made by `from_pretrained`.
    """

    origin: Origin | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        batch_size: int,
        max_length: int,
        clipping: bool = True,
        gpu_budget: str | int | None = None,
        host_budget: str | int | None = None,
        disk_budget: str | int | None = None,
        offload_dir: str | Path | None = None,
        micro_batch_size: int | None = None,
        window_depth: int | None = None,
        resident: int | None = None,
        kept: int | None = None,
        pins: Pins | None = None,
        device: Literal["auto", "cuda", "cpu"] = "auto",
        compute_dtype: Literal["auto", "bf16", "fp32"] = "auto",
        optimizer_state: OptimizerState = "fp32",
        seed: int = 0,
        kernels: Literal["auto", "liger", "torch"] = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        parity_check: bool = True,
    ) -> Self:
        """Plan for a model, build the engine, load the weights: ready for `train_step`.

        Args:
            model: a Hugging Face model directory or hub id.
            batch_size, max_length: the most sequences of a step, and the most tokens of a sequence.
            clipping: whether `max_norm` will be used; without, gradients need not wait in host memory.
            gpu_budget, host_budget, disk_budget: bytes, or "8GiB"; None: what is free.
            offload_dir: directory on a fast local disk for what does not fit in host memory; None: there is no disk.
            micro_batch_size, window_depth, resident, kept: as the settings of these names; None: chosen.
            pins: the same of further sizes, such as `Pins(disk_blocks=4)`.
            device: "auto", "cuda" (which includes ROCm) or "cpu".
            compute_dtype: "auto" (bf16 on an accelerator, else fp32), "bf16" or "fp32".
            optimizer_state: type of AdamW's stored moments, "fp32" or, stochastically rounded, "bf16".
            seed: of that rounding.
            kernels: "auto", "liger" or "torch".
            attn_implementation: transformers' name of it; None: its choice for the model.
            trust_remote_code: run Python code that comes with the model.
            parity_check: train a tiny copy of the model both ways first.

        Raises:
            DoesNotFit: with what would fit, also where a pinned size does not.
            UnsupportedModel, WeightsError, ConfigError: why the model cannot be trained or read.
        """
        workload = Workload(
            batch_size,
            max_length,
            clipping,
            micro_batch_size,
            window_depth,
            optimizer_state=optimizer_state,
            resident=resident,
            kept=kept,
            pins=pins or Pins(),
        )
        offload_dir = None if offload_dir is None else Path(offload_dir)
        disk_bytes = disk_budget_bytes(offload_dir, _bytes(disk_budget))
        where, dtype = device_and_dtype(device, compute_dtype)
        path = resolve(str(model), trust_remote_code)
        config = read_config(path, trust_remote_code)
        fused = choose_kernels(kernels, where.type) == "liger"
        decoder = Decoder(config, where, attn_implementation, apply_liger if fused else None, trust_remote_code)
        pace = pace_of_model(where, config, workload, dtype, fused, trust_remote_code)
        plan = _plan(decoder, workload, dtype, _bytes(gpu_budget), _bytes(host_budget), disk_bytes, pace)
        if parity_check:
            check_parity(config, trust_remote_code)
        engine = cls(decoder, plan.sizes, dtype, offload_dir=offload_dir, seed=seed)
        engine.origin = Origin(path, config, plan, trust_remote_code)
        engine.load(stream_in(path, build_on_meta(config, None, trust_remote_code), engine.parameter_groups()))
        return engine

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a Hugging Face model directory in the compute dtype, with the tokenizer of `from_pretrained`'s model.

        A model that is there already stays whole until the new one is.
        """
        origin = self.origin
        config = origin.config if origin else self.decoder.config
        model = build_on_meta(config, None, bool(origin and origin.trust_remote_code))
        tokenizer_from = origin.path if origin else None
        stream_out(
            Path(directory), model, config, self.weights(self.dtype), dtype=self.dtype, tokenizer_from=tokenizer_from
        )  # fmt: skip


def _bytes(budget: str | int | None) -> int | None:
    return None if budget is None else parse_bytes(budget)


def _plan(
    decoder: Decoder,
    workload: Workload,
    dtype: torch.dtype,
    gpu_bytes: int | None,
    host_bytes: int | None,
    disk_bytes: int | None,
    pace: Pace | None,
) -> Plan:
    """The plan on this machine, within budgets; None: what is free, for the disk none."""
    machine = Machine.measure(decoder.device)
    work = measure_work(decoder, workload.max_length, dtype)
    host, gpu = host_bytes or machine.host_bytes, machine.allocatable_bytes(gpu_bytes)
    return make_plan(model_sizes(decoder), work, workload, dtype, host, gpu, resident_bytes(), disk_bytes, pace)


def pace_of_model(
    device: torch.device, config: Any, workload: Workload, dtype: torch.dtype, fused: bool, trust_remote_code: bool
) -> Pace | None:
    """What full steps take on this machine; None unless `slideformer probe` has measured its GPU."""
    rates = cached_rates() if device.type != "cpu" else None
    if rates is None or not rates.has_gpu:
        return None
    plain = Decoder(config, torch.device("cpu"), None, None, trust_remote_code)
    operations = count_operations(plain, dtype, fused)
    return pace_of_full_steps(operations, rates, workload.batch_size, workload.max_length, dtype, workload.clipping)
