"""What happens between two steps: held-out loss, sample answers, the best model, and whether to go on."""

import math
import time
from collections.abc import Iterable

from slideformer.engine.engine import Engine
from slideformer.listeners.events import Listener, Wishes
from slideformer.listeners.metrics import EvalStats, Sample
from slideformer.prepare.job import Job
from slideformer.prepare.prompts import Prompts
from slideformer.run.best_model import BestModel
from slideformer.run.saving import save


class EarlyStopping:
    """Counts the evaluations in a row that did not improve the loss, as transformers' EarlyStoppingCallback does.

    Args:
        patience: how many are enough; None: no number is.
        threshold: by how much the loss has to fall below the lowest one before it counts as improved.
        past: evaluations of the run so far. Step 0 is left out: a model that was not trained is none to fall back to.
    """

    def __init__(self, patience: int | None, threshold: float, past: Iterable[EvalStats] = ()):
        self._patience, self._threshold = patience, threshold
        self._lowest, self._waited = math.inf, 0
        for stats in past:
            self.see(stats)

    def see(self, stats: EvalStats) -> None:
        if not stats.step:
            return
        improved = self._lowest - stats.loss > self._threshold  # false if the loss is not a number
        self._waited = 0 if improved else self._waited + 1
        if stats.loss < self._lowest:
            self._lowest = stats.loss

    @property
    def enough(self) -> bool:
        return self._patience is not None and self._waited >= self._patience


class Interludes:
    """What a run does between two steps, when it is due; training goes on as if nothing had been.

    Args:
        past: evaluations of the run that this one continues, as its log has them.
        best: where the best model is kept.
    """

    def __init__(
        self, engine: Engine, job: Job, listener: Listener, wishes: Wishes, past: list[EvalStats], best: BestModel
    ):
        config = job.config
        self._engine, self._job, self._listener, self._wishes = engine, job, listener, wishes
        self.best = best
        self._stopping = EarlyStopping(config.early_stopping_patience, config.early_stopping_threshold, past)

    @property
    def enough(self) -> bool:
        """Whether early stopping ends the run here."""
        return self._stopping.enough

    def due(self, step: int) -> bool:
        """Whether anything is to be done after `step` steps."""
        return self._evaluation_due(step) or self._samples_due(step)

    def hold(self, step: int) -> None:
        """Do what is due; the engine must be drained."""
        evaluating, sampling = self._evaluation_due(step), self._samples_due(step)
        if evaluating:
            self._evaluate(step)
        if self._job.prompts and (sampling or self.enough):
            self._answer(step, self._job.prompts)
        self._wishes.evaluate = False

    def _evaluation_due(self, step: int) -> bool:
        config = self._job.config
        if not config.evaluates:
            return False
        if step == 0:
            return config.eval_on_start
        return self._wishes.evaluate or step == self._job.steps or _every(config.eval_steps, step)

    def _samples_due(self, step: int) -> bool:
        """At both ends, and in between with the evaluations unless at steps of their own."""
        config = self._job.config
        if self._job.prompts is None:
            return False
        if step in (0, self._job.steps):
            return True
        return _every(config.sample_steps, step) if config.sample_steps else self._evaluation_due(step)

    def _answer(self, step: int, prompts: Prompts) -> None:
        answers = zip(prompts.texts, prompts.answers(self._engine), strict=True)
        self._listener.sampled([Sample(step, prompt, answer) for prompt, answer in answers])

    def _evaluate(self, step: int) -> None:
        config, started = self._job.config, time.perf_counter()
        found = self._engine.evaluate(self._job.held_out_batches())
        perplexity = math.exp(found.loss) if found.loss < 700 else math.inf  # beyond, exp overflows
        stats = EvalStats(step, found.loss, perplexity, found.tokens, time.perf_counter() - started)
        self._listener.evaluated(stats)
        self._stopping.see(stats)
        if self.enough:
            print(f"stopping early: {config.early_stopping_patience} evaluations in a row did not improve the loss")
        if step and (config.save_best or config.load_best_model_at_end):
            self.best.offer(stats, lambda directory: save(self._engine, self._job, directory))


def _every(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0
