"""Between the plan and the first step: what will be done is told and recorded, and the engine is filled."""

import time
from datetime import UTC, datetime

from slideformer.engine.engine import Engine
from slideformer.engine.parity import check_parity
from slideformer.engine.random_weights import random_weights
from slideformer.listeners.metrics import RunRecord
from slideformer.models.freezing import trained_in_words
from slideformer.models.meta import build_on_meta
from slideformer.models.stream_in import stream_in
from slideformer.plan.table import NO_RATES, render
from slideformer.prepare.job import Job
from slideformer.run.resume import AUTO, Candidate, restore_newest


def introduce(job: Job) -> None:
    """What will be trained, on what, and within which memory; the architecture's own check is part of it."""
    config, held_out = job.config, job.held_out
    print(job.data.report)
    if held_out is not None:
        print(f"held out for evaluation: {len(held_out):,} records, {int(held_out.lengths.sum()):,} tokens")
    if trained := _trained(job):
        print(trained)
    if config.parity_check:
        print(check_parity(job.model_config, config.trust_remote_code, config.packing))
    print(render(job.plan) if job.plan.timing else f"{render(job.plan)}\n{NO_RATES}")


def _trained(job: Job) -> str | None:
    """What is trained and what is not, where anything is not."""
    decoder, patterns = job.decoder, {"trainable": job.config.trainable, "frozen": job.config.frozen}
    return trained_in_words(decoder.parameter_shapes, decoder.frozen, decoder.unused_shapes, patterns)


def run_record(job: Job) -> RunRecord:
    """What the run is."""
    model = {
        "architecture": type(job.decoder.model).__name__,
        "parameters": job.plan.model.parameters,
        "trained_parameters": job.plan.model.trained_parameters,
    }
    return RunRecord(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        config=job.config.model_dump(mode="json"),
        versions=job.facts.versions,
        machine=vars(job.machine),
        plan=job.plan.as_json(),
        data=job.data_record(),
        model=model,
        steps=job.steps,
    )


def restore_or_load(engine: Engine, job: Job, candidates: list[Candidate]) -> int | None:
    """Fill the engine; returns the steps that are done, None in a run that begins."""
    if not candidates:
        _load(engine, job)
        return None
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
