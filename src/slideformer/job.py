"""Everything known of a run before memory is taken: data, model, plan, steps. What `plan` shows and `train` runs."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from slideformer.config import Config
from slideformer.data.batches import BatchStream
from slideformer.data.examples import fingerprint
from slideformer.data.load import Encoding, LoadedData, apply_chat_template, load_data
from slideformer.data.packing import extreme_rows
from slideformer.data.show import show
from slideformer.engine.measure import Row, measure_work, model_sizes
from slideformer.engine.parity import check_causal
from slideformer.engine.pretrained import device_and_dtype
from slideformer.errors import ConfigError, DoesNotFit
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.models.architecture import Decoder
from slideformer.models.freezing import frozen_names
from slideformer.models.hub import read_config, resolve
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.lr import learning_rate_at, warmup_step_count
from slideformer.plan.machine import Machine, resident_bytes
from slideformer.plan.planner import Plan, Workload, make_plan
from slideformer.resume import package_versions
from slideformer.storage.manifest import Data, RunFacts

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True)
class Job:
    """Everything known before memory is taken: what `plan` shows and `train` runs."""

    config: Config
    model_path: Path
    model_config: Any
    data: LoadedData
    pad_id: int
    decoder: Decoder
    dtype: torch.dtype
    kernels: str
    machine: Machine
    plan: Plan

    @cached_property
    def steps(self) -> int:
        config = self.config
        return config.max_steps if config.max_steps > 0 else self.batches().steps_in(config.num_train_epochs)

    def batches(self) -> BatchStream:
        """The batches of the run, by step number."""
        return self._stream

    @cached_property
    def _stream(self) -> BatchStream:
        return batch_stream(self.config, self.data, self.pad_id, self.config.packing)

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
            data=Data(records=len(self.data.examples), sha256=fingerprint(self.data.examples)),
            versions=package_versions(),
            config=self.config.model_dump(mode="json"),
        )


def prepare(config: Config, micro_batch_size: int | None = None) -> Job:
    """Read data and model configuration, measure the machine, and plan; nothing large is allocated.

    Args:
        micro_batch_size: that of the run to continue, kept if the config leaves it open and it still fits.

    Raises:
        ConfigError, DataError, UnsupportedModel, DoesNotFit: whatever stands in the way, before minutes of loading.
    """
    if config.budget.disk or config.budget.offload_dir:
        raise ConfigError("budget: there is no disk tier yet", "remove budget.disk and budget.offload_dir")
    device, dtype = device_and_dtype(config.device, config.compute_dtype)
    path = resolve(config.model, config.trust_remote_code)
    model_config = read_config(path, config.trust_remote_code)
    kernels = choose_kernels(config.kernels, device.type)
    attention = config.attn_implementation
    customize = apply_liger if kernels == "liger" else None
    freeze = partial(frozen_names, trainable=config.trainable, frozen=config.frozen)
    decoder = Decoder(model_config, device, attention, customize, config.trust_remote_code, freeze, config.packing)
    check_causal(model_config, config.trust_remote_code)
    data, pad_id = read_data(config, path, decoder.vocabulary)
    machine = Machine.measure(decoder.device)
    plan = _plan(config, decoder, dtype, machine, data, micro_batch_size)
    return Job(config, path, model_config, data, pad_id, decoder, dtype, kernels, machine, plan)


def plan_for(config: Config) -> Plan:
    """The plan of a run, without running it."""
    return prepare(config).plan


def show_data(config: Config, samples: int) -> None:
    """Print what the run would train on, to standard output."""
    path = resolve(config.model, config.trust_remote_code)
    model_config = read_config(path, config.trust_remote_code)
    data, _ = read_data(config, path, model_config.get_text_config().vocab_size)
    show(
        data,
        load_tokenizer(path, config),
        names=[str(source.path) for source in config.data.all_sources()],
        packed=batch_stream(config, data, 0, packing=True).rows(0),
        max_length=config.max_length,
        samples=samples,
        console=Console(),
    )


def read_data(config: Config, model_path: Path, vocabulary: int) -> tuple[LoadedData, int]:
    """The examples to train on, and the id that pads them."""
    tokenizer = load_tokenizer(model_path, config)
    encoding = Encoding(
        config.max_length, config.too_long, vocabulary, config.data.train_on, config.data.cache_dir
    )  # fmt: skip
    data = load_data(config.data.all_sources(), tokenizer, encoding)
    return data, (tokenizer.pad_token_id or 0) if tokenizer else 0


def batch_stream(config: Config, data: LoadedData, pad_id: int, packing: bool) -> BatchStream:
    """Batches by step number, packed or not."""
    return BatchStream(
        data.examples,
        config.batch_size,
        shuffle=config.data.shuffle,
        seed=config.seed,
        pad_id=pad_id,
        mixture=data.mixture,
        row_length=config.max_length if packing else None,
    )


def load_tokenizer(model_path: Path, config: Config) -> Any:
    """The model's tokenizer with the run's chat template; None where it has none: tokenized records need none."""
    from transformers import AutoTokenizer

    tokenizer = None
    if any((model_path / name).exists() for name in TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=config.trust_remote_code)
    apply_chat_template(config.data, tokenizer)
    return tokenizer


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


def _plan(
    config: Config, decoder: Decoder, dtype: torch.dtype, machine: Machine, data: LoadedData, kept_size: int | None
) -> Plan:
    length, rows = _rows_to_plan_for(config, data)
    workload = Workload(
        config.batch_size,
        length,
        config.max_grad_norm is not None,
        config.micro_batch_size,
        config.window_depth,
        recompute_all=bool(config.gradient_checkpointing),
    )
    host = config.budget.host_bytes or machine.host_bytes
    gpu = machine.allocatable_bytes(config.budget.gpu_bytes)
    work = measure_work(decoder, length, dtype, rows)

    def plan_of(workload: Workload) -> Plan:
        return make_plan(model_sizes(decoder), work, workload, dtype, host, gpu, process_bytes=resident_bytes())

    if kept_size and not config.micro_batch_size and kept_size <= config.batch_size:
        try:
            return plan_of(replace(workload, micro_batch_size=kept_size))
        except DoesNotFit:
            pass  # a smaller one may; the change is told when the checkpoint is resumed from
    return plan_of(workload)


def _rows_to_plan_for(config: Config, data: LoadedData) -> tuple[int, list[Row]]:
    """(tokens of the longest row, the documents in the hungriest ones or None)."""
    lengths = data.examples.lengths.numpy()
    if not config.packing:
        return int(lengths.max()), [None]
    rows = batch_stream(config, data, 0, packing=True).rows(0)
    return config.max_length, [*extreme_rows(rows, lengths, config.max_length)]
