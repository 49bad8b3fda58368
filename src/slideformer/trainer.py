"""The run: data, model, plan, engine, loop, saved model."""

import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from slideformer.config import Config
from slideformer.data.batches import BatchStream
from slideformer.data.examples import fingerprint
from slideformer.data.load import Encoding, LoadedData, apply_chat_template, load_data
from slideformer.data.show import show
from slideformer.engine.engine import Engine
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.engine.parity import check_parity
from slideformer.engine.random_weights import random_weights
from slideformer.errors import ConfigError, DoesNotFit, NonFinite
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.metrics import MetricsLog, host_peak_bytes
from slideformer.models.architecture import Decoder, build_on_meta
from slideformer.models.hub import read_config, resolve
from slideformer.models.stream_in import stream_in
from slideformer.models.stream_out import stream_out
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.lr import learning_rate_at, total_steps, warmup_step_count
from slideformer.plan.machine import Machine
from slideformer.plan.planner import Plan, Workload, make_plan
from slideformer.progress import ProgressLine
from slideformer.recorder import Recorder
from slideformer.resume import AUTO, Candidate, find_candidates, package_versions, restore_newest
from slideformer.stop_request import StopRequest
from slideformer.storage.checkpoint import keep_newest, remove_hidden, write_checkpoint
from slideformer.storage.lock import locked
from slideformer.storage.manifest import Data, RunFacts
from slideformer.units import format_bytes

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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
    plan: Plan

    @property
    def steps(self) -> int:
        return total_steps(self.config.max_steps, self.config.num_train_epochs, self.batches().steps_per_epoch)

    def batches(self) -> BatchStream:
        """The batches of the run, by step number."""
        config, data = self.config, self.data
        return BatchStream(
            data.examples,
            config.batch_size,
            shuffle=config.data.shuffle,
            seed=config.seed,
            pad_id=self.pad_id,
            mixture=data.mixture,
        )

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
    device, dtype = _device_and_dtype(config)
    path = resolve(config.model, config.trust_remote_code)
    model_config = read_config(path, config.trust_remote_code)
    kernels = choose_kernels(config.kernels, device.type)
    attention = config.attn_implementation
    customize = apply_liger if kernels == "liger" else None
    decoder = Decoder(model_config, device, attention, customize, config.trust_remote_code)
    data, pad_id = read_data(config, path, decoder.vocabulary)
    plan = _plan(config, decoder, dtype, int(data.examples.lengths.max()), micro_batch_size)
    return Job(config, path, model_config, data, pad_id, decoder, dtype, kernels, plan)


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
        max_length=config.max_length,
        samples=samples,
        console=Console(),
    )


class Trainer:
    """Runs one configuration from data to saved model."""

    def __init__(self, config: Config):
        self.config = config

    def train(self) -> Path | None:
        """Train, write `metrics.jsonl` and a Hugging Face model directory to `output_dir`.

        SIGTERM or SIGINT end the run after its current step, with a checkpoint, whose path is then returned.

        Raises:
            SlideFormerError: see `prepare`; NonFinite if a loss or gradient is, and then nothing is saved;
                CheckpointError if nothing can be resumed from, or saving fails.
        """
        with locked(self.config.output_dir):
            return self._train()

    def _train(self) -> Path | None:
        config = self.config
        remove_hidden(config.output_dir)
        candidates = find_candidates(config)
        job = prepare(config, candidates[0].manifest.run.micro_batch_size if candidates else None)
        print(job.data.report)
        if config.parity_check:
            print(check_parity(job.model_config, config.trust_remote_code))
        print(job.plan)
        with Engine(job.decoder, job.plan.sizes, job.dtype) as engine:
            done = _restore_or_load(engine, job, candidates)
            with StopRequest() as stop:
                stopped_at = self._loop(engine, job, done, stop)
                if stopped_at is None:
                    save(engine, job, config.output_dir)
        print(_predicted_against_measured(job.plan, engine))
        return stopped_at

    def _loop(self, engine: Engine, job: Job, done: int, stop: StopRequest) -> Path | None:
        """Steps `done` + 1 to the last; or, if a stop is requested, to the checkpoint that is returned."""
        config = self.config
        stream = job.batches()
        with MetricsLog(config.output_dir / "metrics.jsonl", resume_step=done) as log, ProgressLine(
            job.steps, done, config.logging_steps
        ) as progress, _explained(engine, stream):  # fmt: skip
            recorder = Recorder(engine, log, progress)
            for step in range(done + 1, job.steps + 1):
                batch, hyper = stream.at(step - 1), hyper_at(config, job.steps, step)
                recorder.add(step, hyper, batch, engine.train_step(batch, hyper, config.max_grad_norm))
                stopping, due = stop.requested, config.save_steps and step % config.save_steps == 0
                if step < job.steps and (stopping or due):
                    recorder.finish()
                    saved = save_checkpoint(engine, job, step)
                    if stopping:
                        return saved
            recorder.finish()
        return None


def save_checkpoint(engine: Engine, job: Job, step: int) -> Path:
    """Write what `step` left, to be resumed from; removes the oldest checkpoints beyond `save_total_limit`."""
    config, started = job.config, time.perf_counter()
    beside = (lambda directory: save(engine, job, directory / "model")) if config.export_checkpoints else None
    path = write_checkpoint(config.output_dir, step, job.facts, engine.unit_states(), beside)
    if config.save_total_limit:
        keep_newest(config.output_dir, config.save_total_limit)
    print(f"saved {path} in {time.perf_counter() - started:.1f} s")
    return path


def save(engine: Engine, job: Job, directory: Path) -> None:
    """Write the model as a Hugging Face directory, in the dtype it computes in."""
    model = build_on_meta(job.model_config, None, job.config.trust_remote_code)
    stream_out(
        directory, model, job.model_config, engine.weights(job.dtype), dtype=job.dtype, tokenizer_from=job.model_path
    )
    if job.config.data.chat_template:  # beside the tokenizer, a file of this name is the template that counts
        shutil.copyfile(job.config.data.chat_template, directory / "chat_template.jinja")
    print(f"saved {directory}")


def export(source: Path, out: Path, dtype: str) -> None:
    """Copy a saved model in another dtype ("bf16" or "fp32")."""
    path = resolve(str(source))
    config = read_config(path)
    model = build_on_meta(config)
    names = {name: [name] for name, _ in model.named_parameters()}
    stream_out(Path(out), model, config, stream_in(path, model, names), dtype=DTYPES[dtype], tokenizer_from=path)
    print(f"saved {out}")


def _device_and_dtype(config: Config) -> tuple[torch.device, torch.dtype]:
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ConfigError("device: cuda, but PyTorch sees no GPU", "check the driver, or set device: cpu")
    device = torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")
    if config.compute_dtype == "auto":
        return device, torch.float32 if device.type == "cpu" else torch.bfloat16
    return device, DTYPES[config.compute_dtype]


def read_data(config: Config, model_path: Path, vocabulary: int) -> tuple[LoadedData, int]:
    """The examples to train on, and the id that pads them."""
    tokenizer = load_tokenizer(model_path, config)
    encoding = Encoding(
        config.max_length, config.too_long, vocabulary, config.data.train_on, config.data.cache_dir
    )  # fmt: skip
    data = load_data(config.data.all_sources(), tokenizer, encoding)
    return data, (tokenizer.pad_token_id or 0) if tokenizer else 0


def load_tokenizer(model_path: Path, config: Config) -> Any:
    """The model's tokenizer with the run's chat template; None where it has none: tokenized records need none."""
    from transformers import AutoTokenizer

    tokenizer = None
    if any((model_path / name).exists() for name in TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=config.trust_remote_code)
    apply_chat_template(config.data, tokenizer)
    return tokenizer


def _plan(config: Config, decoder: Decoder, dtype: torch.dtype, longest: int, kept_size: int | None) -> Plan:
    machine = Machine.measure(decoder.device)
    workload = Workload(
        config.batch_size,
        longest,
        config.max_grad_norm is not None,
        config.micro_batch_size,
        config.window_depth,
        recompute_all=bool(config.gradient_checkpointing),
    )
    host = config.budget.host_bytes or machine.host_bytes
    gpu = machine.allocatable_bytes(config.budget.gpu_bytes)
    work = measure_work(decoder, longest, dtype)

    def plan_of(workload: Workload) -> Plan:
        return make_plan(model_sizes(decoder), work, workload, dtype, host, gpu, process_bytes=_resident_bytes())

    if kept_size and not config.micro_batch_size and kept_size <= config.batch_size:
        try:
            return plan_of(replace(workload, micro_batch_size=kept_size))
        except DoesNotFit:
            pass  # a smaller one may; the change is told when the checkpoint is resumed from
    return plan_of(workload)


def _restore_or_load(engine: Engine, job: Job, candidates: list[Candidate]) -> int:
    """Fill the engine; returns the steps that are done."""
    if not candidates:
        _load(engine, job)
        return 0
    started = time.perf_counter()
    named = job.config.resume_from_checkpoint != AUTO
    step = restore_newest(candidates, engine.unit_states(), job.facts, named)
    print(f"read {job.plan.model.parameters / 1e9:.3g}B parameters' state in {time.perf_counter() - started:.1f} s")
    return step


def _load(engine: Engine, job: Job) -> None:
    started = time.perf_counter()
    if job.config.init == "random":
        engine.load(random_weights(engine, job.model_config, job.config.seed))
    else:
        model = build_on_meta(job.model_config, None, job.config.trust_remote_code)
        engine.load(stream_in(job.model_path, model, engine.parameter_groups()))
    print(f"loaded {job.plan.model.parameters / 1e9:.3g}B parameters in {time.perf_counter() - started:.1f} s")


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


@contextmanager
def _explained(engine: Engine, stream: BatchStream) -> Iterator[None]:
    """Say which records and which layer made a step not finite."""
    try:
        yield
    except NonFinite as error:
        batch = stream.at(error.step - 1)
        place = engine.find_non_finite(batch)
        records = ", ".join(map(str, batch.indices[:8]))
        message = f"{error.message}; {place}; records of the batch: {records}"
        raise NonFinite(message, error.hint, error.step) from error


def _predicted_against_measured(plan: Plan, engine: Engine) -> str:
    lines = [f"host: predicted {format_bytes(plan.host_peak_bytes)}, measured {format_bytes(host_peak_bytes())}"]
    if plan.device_budget_bytes is not None:
        peak = torch.cuda.max_memory_allocated()
        lines.append(f"GPU: predicted {format_bytes(plan.device_peak_bytes)}, measured {format_bytes(peak)}")
    return "; ".join(lines)


def _resident_bytes() -> int:
    """Host memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
