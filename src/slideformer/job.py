"""Everything known of a run before memory is taken: data, model, plan, steps. What `plan` shows and `train` runs."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from slideformer.config import Config
from slideformer.data.batches import Batch, BatchStream
from slideformer.data.examples import Examples, fingerprint
from slideformer.data.held_out import hold_out, longest_first
from slideformer.data.load import Encoding, LoadedData, apply_chat_template, load_data
from slideformer.data.packing import extreme_rows
from slideformer.data.prompts import read_prompts, stop_ids
from slideformer.data.show import show
from slideformer.engine.generate import pass_length
from slideformer.engine.measure import Row, measure_work, model_sizes
from slideformer.engine.measure_inference import measure_keys_and_values
from slideformer.engine.parity import check_causal
from slideformer.engine.pretrained import device_and_dtype
from slideformer.engine.sampling import Decoding
from slideformer.errors import ConfigError, DoesNotFit
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.models.architecture import Decoder
from slideformer.models.freezing import frozen_names
from slideformer.models.hub import read_config, resolve
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.lr import learning_rate_at, warmup_step_count
from slideformer.plan.footprint import Answers
from slideformer.plan.machine import Machine, resident_bytes
from slideformer.plan.planner import Plan, Workload, make_plan
from slideformer.prompts import Prompts, make_prompts
from slideformer.resume import package_versions
from slideformer.storage.manifest import Data, RunFacts

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True)
class Job:
    """Everything known before memory is taken: what `plan` shows and `train` runs.

    Attributes:
        held_out: what is evaluated on, the longest first; None: nothing.
        prompts: what is answered between two steps; None: nothing.
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

    @cached_property
    def steps(self) -> int:
        config = self.config
        return config.max_steps if config.max_steps > 0 else self.batches().steps_in(config.num_train_epochs)

    def batches(self) -> BatchStream:
        """The batches of the run, by step number."""
        return self._stream

    @cached_property
    def _stream(self) -> BatchStream:
        return batch_stream(self.config, self.data, pad_id_of(self.tokenizer), self.config.packing)

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
    tokenizer = load_tokenizer(path, config)
    data, held_out = read_data(config, tokenizer, decoder.vocabulary)
    prompts = read_sample_prompts(config, tokenizer, path, model_config)
    machine = Machine.measure(decoder.device)
    plan = _plan(config, decoder, dtype, machine, data, held_out, prompts, micro_batch_size)
    return Job(config, path, model_config, tokenizer, data, held_out, prompts, decoder, dtype, kernels, machine, plan)


def plan_for(config: Config) -> Plan:
    """The plan of a run, without running it."""
    return prepare(config).plan


def show_data(config: Config, samples: int) -> None:
    """Print what the run would train on, to standard output."""
    path = resolve(config.model, config.trust_remote_code)
    model_config = read_config(path, config.trust_remote_code)
    tokenizer = load_tokenizer(path, config)
    data, _ = read_data(config, tokenizer, model_config.get_text_config().vocab_size)
    show(
        data,
        tokenizer,
        names=[str(source.path) for source in config.data.all_sources()],
        packed=batch_stream(config, data, 0, packing=True).rows(0),
        max_length=config.max_length,
        samples=samples,
        console=Console(),
    )


def read_data(config: Config, tokenizer: Any, vocabulary: int) -> tuple[LoadedData, Examples | None]:
    """The examples to train on, and those to evaluate on."""
    on = config.data
    encoding = Encoding(config.max_length, config.too_long, vocabulary, on.train_on, on.cache_dir, on.on_error)
    data, held_out = load_data(config.data.all_sources(), tokenizer, encoding), None
    if config.eval_size:
        data, held_out = hold_out(data, config.eval_size, config.seed)
    elif sources := config.eval_data.all_sources():
        held_out = load_data(sources, tokenizer, encoding).examples
    return data, None if held_out is None else longest_first(held_out)


def read_sample_prompts(config: Config, tokenizer: Any, model_path: Path, model_config: Any) -> Prompts | None:
    """What is answered between two steps."""
    if not config.sample_prompts:
        return None
    texts = read_prompts(config.sample_prompts)
    stop = stop_ids(model_path, model_config, tokenizer)
    decoding = Decoding(config.sample_max_new_tokens, stop, config.sample_temperature, seed=config.seed)
    return make_prompts(texts, tokenizer, model_path, model_config, decoding, config.sample_raw)


def pad_id_of(tokenizer: Any) -> int:
    """The token id that fills a batch up; it is never trained."""
    return (tokenizer.pad_token_id or 0) if tokenizer else 0


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
    tokenizer = tokenizer_of(model_path, config.trust_remote_code)
    apply_chat_template(config.data, tokenizer)
    return tokenizer


def tokenizer_of(model_path: Path, trust_remote_code: bool) -> Any:
    """The tokenizer in a model's directory, or None."""
    from transformers import AutoTokenizer

    if not any((model_path / name).exists() for name in TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)


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


def plan_within(job: Job, device_bytes: int) -> Plan:
    """The plan of the same run with another budget of the memory that layers compute in.

    Raises:
        DoesNotFit: there is none.
    """
    on_host = job.plan.device_budget_bytes is None
    budget = job.config.budget.model_copy(update={"host" if on_host else "gpu": f"{device_bytes}B"})
    config = job.config.model_copy(update={"budget": budget})
    return _plan(config, job.decoder, job.dtype, job.machine, job.data, job.held_out, job.prompts, None)


def _plan(
    config: Config,
    decoder: Decoder,
    dtype: torch.dtype,
    machine: Machine,
    data: LoadedData,
    held_out: Examples | None,
    prompts: Prompts | None,
    kept_size: int | None,
) -> Plan:
    longest, rows = _rows_to_plan_for(config, data, held_out)
    answers, length = _plan_answers(config, decoder, dtype, prompts, longest)
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
    work = replace(measure_work(decoder, length, dtype, rows), answers=answers)

    def plan_of(workload: Workload) -> Plan:
        return make_plan(model_sizes(decoder), work, workload, dtype, host, gpu, process_bytes=resident_bytes())

    if kept_size and not config.micro_batch_size and kept_size <= config.batch_size:
        try:
            return plan_of(replace(workload, micro_batch_size=kept_size))
        except DoesNotFit:
            pass  # a smaller one may; the change is told when the checkpoint is resumed from
    return plan_of(workload)


def _rows_to_plan_for(config: Config, data: LoadedData, held_out: Examples | None) -> tuple[int, list[Row]]:
    """(tokens of the longest row, the documents in the hungriest ones or None)."""
    if config.packing:
        rows = batch_stream(config, data, 0, packing=True).rows(0)
        return config.max_length, [*extreme_rows(rows, data.examples.lengths.numpy(), config.max_length)]
    return max(int(examples.lengths.max()) for examples in (data.examples, held_out) if examples is not None), [None]


def _plan_answers(
    config: Config, decoder: Decoder, dtype: torch.dtype, prompts: Prompts | None, longest: int
) -> tuple[Answers | None, int]:
    """What answering sample prompts needs, and the longest sequence of a pass with them."""
    if prompts is None:
        return None, longest
    cache = measure_keys_and_values(decoder, dtype)
    if cache is None:
        print("sample_prompts: the model keeps no keys and values, so each new token computes its whole prompt again")
    needed = pass_length(prompts.longest, prompts.decoding.max_new_tokens, cached=cache is not None)
    if needed > config.max_length:
        raise ConfigError(
            f"sample_prompts: a pass over {needed} tokens is longer than max_length = {config.max_length}",
            "shorten the prompts or their answers, or raise max_length",
        )
    return Answers(len(prompts.tokens), prompts.longest_sequence, cache), max(longest, needed)
