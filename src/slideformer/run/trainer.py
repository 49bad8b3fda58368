"""The run: plan, engine, loop, saved model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slideformer.data.batches import BatchStream
from slideformer.engine.engine import Engine
from slideformer.errors import NonFinite
from slideformer.lanes.lanes import lanes_for
from slideformer.lanes.measured import measured
from slideformer.listeners.events import Listener, Listeners, Wishes
from slideformer.listeners.metrics import EvalStats
from slideformer.listeners.progress import progress
from slideformer.listeners.run_directory import EVALS, RunDirectory, read_log
from slideformer.listeners.trackers import tracker_callbacks
from slideformer.listeners.transformers_callbacks import Callback, HuggingFaceListener
from slideformer.models.meta import build_on_meta
from slideformer.prepare.job import Job, hyper_at, prepare
from slideformer.prepare.reading import load_tokenizer
from slideformer.run.background_saving import BackgroundSaving
from slideformer.run.best_model import BestModel
from slideformer.run.evaluation import Interludes
from slideformer.run.out_of_memory import explained_out_of_memory
from slideformer.run.outcome import StepTimes, predicted_against_measured
from slideformer.run.recorder import Recorder
from slideformer.run.resume import Candidate, find_candidates
from slideformer.run.saving import save_checkpoint, save_result
from slideformer.run.skipped_steps import SkippedSteps
from slideformer.run.start import introduce, restore_or_load, run_record
from slideformer.run.stop_request import StopRequest
from slideformer.settings.config import Config, as_config
from slideformer.storage.checkpoint import remove_hidden
from slideformer.storage.lock import locked


class Trainer:
    """Runs one configuration from data to saved model.

    Args:
        config: every setting of the run; or a dict of them, or the path of a YAML file.
        listeners: told how the run goes, after the run directory and the progress line.
        wishes: what listeners ask for between two steps.
        callbacks: of transformers, instances or classes; called as `HuggingFaceListener` says.

    Raises:
        ConfigError: a setting is missing, unknown, of the wrong type or out of range.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | str | Path,
        listeners: Sequence[Listener] = (),
        wishes: Wishes | None = None,
        *,
        callbacks: Sequence[Callback] = (),
    ):
        self.config = as_config(config)
        self._listeners = listeners
        self._wishes = wishes or Wishes()
        self._callbacks = callbacks

    def train(self) -> Path | None:
        """Train, write the run's records and a Hugging Face model directory to `output_dir`.

        SIGTERM or SIGINT end the run after its current step, with a checkpoint, whose path is then returned.

        Raises:
            SlideFormerError: see `prepare`; NonFinite if a loss or gradient is, and then nothing is saved;
                CheckpointError if nothing can be resumed from, or saving fails.
        """
        with locked(self.config.output_dir):
            return self._train()

    def _train(self) -> Path | None:
        config = self.config
        trackers = tracker_callbacks(config.report_to)  # first, as one may not be installed
        remove_hidden(config.output_dir)
        candidates = find_candidates(config)
        job = prepare(config, candidates[0].manifest.run.micro_batch_size if candidates else None)
        introduce(job)
        callbacks = _listening_callbacks([*trackers, *self._callbacks], job, self._wishes)
        with explained_out_of_memory(job):
            return self._train_planned(job, candidates, callbacks)

    def _train_planned(self, job: Job, candidates: list[Candidate], callbacks: list[Listener]) -> Path | None:
        """The engine's life; no frame above this one knows it, so that an error that is kept keeps no memory."""
        config, times = self.config, StepTimes()
        lanes = measured(lanes_for(job.decoder.device))
        offload_dir = config.budget.offload_dir
        with Engine(job.decoder, job.plan.sizes, job.dtype, lanes, offload_dir=offload_dir, seed=config.seed) as engine:
            done = restore_or_load(engine, job, candidates)
            stopped_at = self._run(engine, job, done, [times, *callbacks])
        print(predicted_against_measured(job.plan, times.median))
        return stopped_at

    def _run(self, engine: Engine, job: Job, done: int | None, more: list[Listener]) -> Path | None:
        """The loop, told to everybody who listens; `done` steps of an earlier run are not done again."""
        records = RunDirectory(self.config.output_dir, done)
        skipped = SkippedSteps(self.config.max_skipped_steps)
        listener = Listeners(records, progress(self.config.logging_steps), *self._listeners, *more, skipped)
        past = read_log(self.config.output_dir / EVALS, EvalStats)
        best = BestModel(self.config.output_dir, begin=done is None)
        interludes = Interludes(engine, job, listener, self._wishes, past, best)
        saving = BackgroundSaving(engine, job, listener)
        try:
            listener.began(run_record(job), done or 0)
            with StopRequest(self._wishes), _explained(engine, job.batches()), saving.ended_if_training_fails():
                return self._loop(engine, job, done or 0, listener, interludes, saving)
        finally:
            listener.ended()

    def _loop(
        self,
        engine: Engine,
        job: Job,
        done: int,
        listener: Listener,
        interludes: Interludes,
        saving: BackgroundSaving,
    ) -> Path | None:
        """Steps `done` + 1 to the last; or, if a stop is wished for, to the checkpoint that is returned."""
        stream, wishes, step = job.batches(), self._wishes, done
        recorder = Recorder(engine, listener, stream.steps_per_epoch)
        skips = self.config.on_non_finite == "skip"
        if not done:
            with recorder.between_steps():
                interludes.hold(0)
        for step in range(done + 1, job.steps + 1):
            batch, hyper = stream.at(step - 1), hyper_at(self.config, job.steps, step)
            result = engine.train_step(batch, hyper, self.config.max_grad_norm, skip_non_finite=skips)
            recorder.add(step, hyper, batch, result)
            saving.recorded(step - 1)
            if interludes.due(step):
                with recorder.between_steps():
                    interludes.hold(step)
            if interludes.enough or wishes.finish:
                break
            if step < job.steps and self._checkpoint_due(step):
                if self.config.saves_in_background and not wishes.stop:
                    saving.begin(step)
                    wishes.save = False
                    continue
                with recorder.between_steps():
                    saving.finish()
                    path = self._save_checkpoint(engine, job, step, listener)
                if wishes.stop:
                    return path
        recorder.finish()
        saving.finish()
        wishes.finish = False
        save_result(engine, job, interludes.best)
        listener.saved(step, self.config.output_dir)
        return None

    def _checkpoint_due(self, step: int) -> bool:
        wished = self._wishes.stop or self._wishes.save
        return wished or (self.config.save_steps is not None and step % self.config.save_steps == 0)

    def _save_checkpoint(self, engine: Engine, job: Job, step: int, listener: Listener) -> Path:
        path = save_checkpoint(engine, job, step)
        listener.saved(step, path)
        self._wishes.save = False
        return path


def _listening_callbacks(callbacks: Sequence[Callback], job: Job, wishes: Wishes) -> list[Listener]:
    """What tells the callbacks; nothing is built for none."""
    if not callbacks:
        return []
    config = job.config
    model = build_on_meta(job.model_config, None, config.trust_remote_code)
    return [HuggingFaceListener(callbacks, wishes, model, load_tokenizer(job.model_path, config))]


@contextmanager
def _explained(engine: Engine, stream: BatchStream) -> Iterator[None]:
    """Say which records and which layer made a step not finite."""
    try:
        yield
    except NonFinite as error:
        if not error.step:  # a sample answer, not a step
            raise
        batch = stream.at(error.step - 1)
        place = engine.find_non_finite(batch)
        records = ", ".join(map(str, batch.indices[:8]))
        message = f"{error.message}; {place}; records of the batch: {records}"
        raise NonFinite(message, error.hint, error.step) from error
