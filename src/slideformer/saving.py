"""What a run leaves: the model as a Hugging Face directory, checkpoints to resume from, a model in another dtype."""

import shutil
import time
from pathlib import Path

from slideformer.engine.engine import Engine
from slideformer.engine.pretrained import DTYPES
from slideformer.job import Job
from slideformer.models.architecture import build_on_meta
from slideformer.models.hub import read_config, resolve
from slideformer.models.stream_in import stream_in
from slideformer.models.stream_out import stream_out
from slideformer.storage.checkpoint import keep_newest, write_checkpoint


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
