"""A model's directory -> an engine that is ready to train, and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from slideformer.engine.measure import measure_work, model_sizes
from slideformer.engine.operations import count_operations
from slideformer.engine.parity import check_parity
from slideformer.errors import ConfigError
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.models.architecture import Decoder
from slideformer.models.hub import read_config, resolve
from slideformer.models.meta import build_on_meta
from slideformer.models.stream_in import stream_in
from slideformer.models.stream_out import stream_out
from slideformer.plan.machine import Machine, disk_budget_bytes, resident_bytes
from slideformer.plan.pace import Pace, pace_of_full_steps
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.plan.rates import cached_rates

if TYPE_CHECKING:
    from slideformer.engine.engine import Engine

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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


def device_and_dtype(device: str, compute_dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device ("auto", "cuda", "cpu") and the type that layers compute in ("auto", "bf16", "fp32").

    Raises:
        ConfigError: a GPU is asked for where there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("device: cuda, but PyTorch sees no GPU", "check the driver, or set device: cpu")
    chosen = torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
    if compute_dtype == "auto":
        return chosen, torch.float32 if chosen.type == "cpu" else torch.bfloat16
    return chosen, DTYPES[compute_dtype]


def load_engine(
    kind: "type[Engine]",
    model: str,
    workload: Workload,
    seed: int,
    *,
    gpu_budget_bytes: int | None,
    host_budget_bytes: int | None,
    disk_bytes: int | None,
    offload_dir: Path | None,
    device: Literal["auto", "cuda", "cpu"],
    compute_dtype: Literal["auto", "bf16", "fp32"],
    kernels: Literal["auto", "liger", "torch"],
    attn_implementation: str | None,
    trust_remote_code: bool,
    parity_check: bool,
) -> "Engine":
    """What `Engine.from_pretrained` does."""
    disk = disk_budget_bytes(offload_dir, disk_bytes)
    where, dtype = device_and_dtype(device, compute_dtype)
    path = resolve(model, trust_remote_code)
    config = read_config(path, trust_remote_code)
    customize = apply_liger if choose_kernels(kernels, where.type) == "liger" else None
    decoder = Decoder(config, where, attn_implementation, customize, trust_remote_code)
    machine, work = Machine.measure(where), measure_work(decoder, workload.max_length, dtype)
    host, gpu = host_budget_bytes or machine.host_bytes, machine.allocatable_bytes(gpu_budget_bytes)
    pace = pace_of_model(where, config, workload, dtype, customize is not None, trust_remote_code)
    plan = make_plan(model_sizes(decoder), work, workload, dtype, host, gpu, resident_bytes(), disk, pace)
    if parity_check:
        check_parity(config, trust_remote_code)
    engine = kind(decoder, plan.sizes, dtype, offload_dir=offload_dir, seed=seed)
    engine.origin = Origin(path, config, plan, trust_remote_code)
    engine.load(stream_in(path, build_on_meta(config, None, trust_remote_code), engine.parameter_groups()))
    return engine


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


def save_engine(engine: "Engine", directory: Path) -> None:
    """What `Engine.save_pretrained` does."""
    origin = engine.origin
    config = origin.config if origin else engine.decoder.config
    model = build_on_meta(config, None, bool(origin and origin.trust_remote_code))
    weights = engine.weights(engine.dtype)
    stream_out(directory, model, config, weights, dtype=engine.dtype, tokenizer_from=origin.path if origin else None)
