"""What a run leaves: the model as a Hugging Face directory, checkpoints to resume from, a model in another dtype."""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from slideformer.engine.device import DTYPES
from slideformer.engine.engine import Engine
from slideformer.models.hub import read_config, resolve
from slideformer.models.meta import build_on_meta
from slideformer.models.stream_in import stream_in
from slideformer.models.stream_out import stream_out
from slideformer.prepare.job import Job
from slideformer.run.best_model import BestModel
from slideformer.storage.checkpoint import UnitState, keep_newest, write_checkpoint

LEAST_URGENT = 19  # as `nice`


def save_checkpoint(engine: Engine, job: Job, step: int) -> Path:
    """Write what `step` left, to be resumed from; removes the oldest checkpoints beyond `save_total_limit`."""
    started = time.perf_counter()
    export = (lambda directory: save(engine, job, directory / "model")) if job.config.export_checkpoints else None
    path = write_state(job, step, engine.unit_states(), export)
    print(f"saved {path} in {time.perf_counter() - started:.1f} s")
    return path


def write_state(job: Job, step: int, units: Mapping[str, UnitState], beside: Callable[[Path], None] | None) -> Path:
    """Write a checkpoint, and remove the oldest ones; `beside` is called with its directory before it is published."""
    config = job.config
    path = write_checkpoint(config.output_dir, step, job.facts, units, beside)
    if config.save_total_limit:
        keep_newest(config.output_dir, config.save_total_limit)
    return path


def give_way() -> None:
    """Let the threads that train have the processor before this one, and before those that it starts."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_URGENT)


def save(engine: Engine, job: Job, directory: Path) -> None:
    """Write the model as a Hugging Face directory, in the dtype it computes in."""
    model = build_on_meta(job.model_config, None, job.config.trust_remote_code)
    stream_out(
        directory, model, job.model_config, engine.weights(job.dtype), dtype=job.dtype, tokenizer_from=job.model_path
    )
    if job.config.data.chat_template:  # beside the tokenizer, a file of this name is the template that counts
        shutil.copyfile(job.config.data.chat_template, directory / "chat_template.jinja")
    print(f"saved {directory}")


def save_result(engine: Engine, job: Job, best: BestModel) -> None:
    """Write what the run came to, to `output_dir`: its last model, or the best one where that is wished for."""
    config = job.config
    stats = best.stats if config.load_best_model_at_end else None
    if stats is None:
        save(engine, job, config.output_dir)
        return
    print(f"the best model is that of step {stats.step}, with a held-out loss of {stats.loss:.4f}")
    _copy_model(best.path, config.output_dir, job.dtype, config.trust_remote_code)


def export(source: Path, out: Path, dtype: str) -> None:
    """Copy a saved model in another dtype ("bf16" or "fp32")."""
    _copy_model(resolve(str(source)), Path(out), DTYPES[dtype])


def _copy_model(source: Path, out: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> None:
    config = read_config(source, trust_remote_code)
    model = build_on_meta(config, None, trust_remote_code)
    names = {name: [name] for name, _ in model.named_parameters()}
    stream_out(out, model, config, stream_in(source, model, names), dtype=dtype, tokenizer_from=source)
    print(f"saved {out}")
