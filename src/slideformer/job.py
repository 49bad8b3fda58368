"""Everything known of a run before memory is taken: data, model, plan, steps. What `plan` shows and `train` runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slideformer.config import Config, as_config
from slideformer.data.batches import Batch, BatchStream
from slideformer.data.examples import Examples, fingerprint
from slideformer.data.load import LoadedData
from slideformer.elsewhere import disk_there, dtype_there, memory_there
from slideformer.engine.parity import check_causal
from slideformer.engine.pretrained import device_and_dtype
from slideformer.errors import DoesNotFit
from slideformer.forecast import forecast, pace_of
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.models.architecture import Decoder
from slideformer.models.freezing import frozen_names
from slideformer.models.hub import read_config, resolve
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.lr import learning_rate_at, warmup_step_count
from slideformer.plan.machine import Machine, disk_budget_bytes
from slideformer.plan.pace import Pace
from slideformer.plan.plan import Plan
from slideformer.plan.rates import MachineRates, cached_rates
from slideformer.planning import plan_run
from slideformer.prompts import Prompts
from slideformer.reading import batch_stream, load_tokenizer, pad_id_of, read_data, read_sample_prompts
from slideformer.resume import package_versions
from slideformer.storage.manifest import Data, RunFacts


@dataclass(frozen=True)
class Job:
    """Everything known before memory is taken: what `plan` shows and `train` runs.

    Attributes:
        held_out: what is evaluated on, the longest first; None: nothing.
        prompts: what is answered between two steps; None: nothing.
        stream: the batches of the run, by step number.
        pace: what its steps take; None where the machine's rates are not known.
    """

    config: Config
    model_path: Path
    model_config: Any
    tokenizer: Any
    data: LoadedData
    held_out: Examples | None
    prompts: Prompts | None
    decoder: Decoder
    dtype: torch.dtype
    kernels: str
    machine: Machine
    plan: Plan
    stream: BatchStream
    pace: Pace | None

    @property
    def steps(self) -> int:
        return _steps_of(self.config, self.stream)

    def batches(self) -> BatchStream:
        """The batches of the run, by step number."""
        return self.stream

    def held_out_batches(self) -> list[Batch]:
        """All held-out examples once, in batches of the size of a step."""
        assert self.held_out is not None
        size = self.plan.sizes.micro_batch_size * self.plan.sizes.micro_batches
        stream = BatchStream(self.held_out, size, shuffle=False, seed=0, pad_id=pad_id_of(self.tokenizer))
        return [stream.at(k) for k in range(stream.steps_per_epoch)]

    def data_record(self) -> dict[str, Any]:
        """What the run trains on, for its record: sources, counts, and how long the records are."""
        lengths = self.data.examples.lengths.numpy()
        counts, edges = np.histogram(lengths, bins=min(20, int(lengths.max())), range=(0, int(lengths.max())))
        return {
            "sources": [str(source.path) for source in self.config.data.all_sources()],
            "reports": [asdict(report) for report in self.data.reports],
            "lengths": {"edges": edges.tolist(), "counts": counts.tolist()},
        }

    @cached_property
    def facts(self) -> RunFacts:
        """What a checkpoint of this run records about it."""
        return RunFacts(
            steps=self.steps,
            dtype="bf16" if self.dtype == torch.bfloat16 else "fp32",
            micro_batch_size=self.plan.sizes.micro_batch_size,
            optimizer_state=self.config.optimizer_state,
            data=Data(records=len(self.data.examples), sha256=fingerprint(self.data.examples)),
            versions=package_versions(),
            config=self.config.model_dump(mode="json"),
        )


def prepare(config: Config, micro_batch_size: int | None = None, elsewhere: MachineRates | None = None) -> Job:
    """Read data and model configuration, measure the machine, and plan; nothing large is allocated.

    Args:
        micro_batch_size: that of the run to continue, kept if the config leaves it open and it still fits.
        elsewhere: plan for this machine instead; such a job cannot be run.

    Raises:
        ConfigError, DataError, UnsupportedModel, DoesNotFit: whatever stands in the way, before minutes of loading.
    """
    disk = (disk_there if elsewhere else disk_budget_bytes)(config.budget.offload_dir, config.budget.disk_bytes)
    if elsewhere is None:
        device, dtype = device_and_dtype(config.device, config.compute_dtype)
    else:
        device, dtype = torch.device("cpu"), dtype_there(elsewhere, config.device, config.compute_dtype)
    path = resolve(config.model, config.trust_remote_code)
    model_config = read_config(path, config.trust_remote_code)
    kernels = "torch" if elsewhere else choose_kernels(config.kernels, device.type)
    attention = config.attn_implementation
    customize = apply_liger if kernels == "liger" else None
    freeze = partial(frozen_names, trainable=config.trainable, frozen=config.frozen)
    decoder = Decoder(model_config, device, attention, customize, config.trust_remote_code, freeze, config.packing)
    check_causal(model_config, config.trust_remote_code)
    tokenizer = load_tokenizer(path, config)
    data, held_out = read_data(config, tokenizer, decoder.vocabulary)
    prompts = read_sample_prompts(config, tokenizer, path, model_config)
    machine = memory_there(elsewhere) if elsewhere else Machine.measure(decoder.device)
    stream = batch_stream(config, data, pad_id_of(tokenizer), config.packing)
    pace = pace_of(
        model_config,
        stream,
        _steps_of(config, stream),
        _rates(elsewhere, decoder),
        dtype=dtype,
        clipping=config.max_grad_norm is not None,
        fused=kernels == "liger" or (elsewhere is not None and elsewhere.has_gpu and config.kernels != "torch"),
        trust_remote_code=config.trust_remote_code,
    )
    plan = plan_run(config, decoder, dtype, machine, disk, data, held_out, prompts, micro_batch_size, elsewhere, pace)
    if pace is not None:
        plan = replace(plan, timing=forecast(plan, pace, dtype, _steps_of(config, stream)))
    return Job(
        config, path, model_config, tokenizer, data, held_out, prompts, decoder, dtype, kernels, machine, plan, stream,
        pace,
    )  # fmt: skip


def plan_for(config: Config, elsewhere: MachineRates | None = None) -> Plan:
    """The plan of a run, without running it; for another machine if its rates are given."""
    return prepare(config, elsewhere=elsewhere).plan


def plan_batch_sizes(
    config: Config, batch_sizes: Sequence[int], elsewhere: MachineRates | None = None
) -> dict[int, Plan | DoesNotFit]:
    """By batch size, the plan of the same run with steps of so many sequences, or why there is none."""
    found: dict[int, Plan | DoesNotFit] = {}
    for size in batch_sizes:
        try:
            found[size] = plan_for(as_config({**config.model_dump(), "batch_size": size}), elsewhere)
        except DoesNotFit as error:
            found[size] = error
    return found


def plan_within(job: Job, device_bytes: int) -> Plan:
    """The plan of the same run with another budget of the memory that layers compute in.

    Raises:
        DoesNotFit: there is none.
    """
    on_host = job.plan.device_budget_bytes is None
    budget = job.config.budget.model_copy(update={"host" if on_host else "gpu": f"{device_bytes}B"})
    config = job.config.model_copy(update={"budget": budget})
    disk = disk_budget_bytes(budget.offload_dir, budget.disk_bytes)
    return plan_run(
        config, job.decoder, job.dtype, job.machine, disk, job.data, job.held_out, job.prompts, None, pace=job.pace
    )  # fmt: skip


def hyper_at(config: Config, steps: int, step: int) -> AdamWStep:
    """The optimizer settings of one step, counted from 1."""
    rate = learning_rate_at(
        step - 1,
        schedule=config.lr_scheduler_type,
        learning_rate=config.learning_rate,
        warmup_steps=warmup_step_count(config.warmup_steps, config.warmup_ratio, steps),
        total_steps=steps,
    )
    return AdamWStep(
        rate, config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.weight_decay, step
    )  # fmt: skip


def _steps_of(config: Config, stream: BatchStream) -> int:
    return config.max_steps if config.max_steps > 0 else stream.steps_in(config.num_train_epochs)


def _rates(elsewhere: MachineRates | None, decoder: Decoder) -> MachineRates | None:
    """The machine's rates, where they are known."""
    rates = elsewhere or cached_rates()
    computes_on_gpu = elsewhere.has_gpu if elsewhere else decoder.device.type != "cpu"
    return rates if rates and rates.has_gpu == computes_on_gpu else None
