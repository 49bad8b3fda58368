"""The model of the lowest held-out loss, kept in a directory of its own while training goes on."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from slideformer.listeners.metrics import EvalStats

DIRECTORY, RECORD = "best", "eval.json"


class BestModel:
    """`output_dir`/best: a Hugging Face directory, and in `eval.json` the evaluation that it is the best of.

    That record, not the run's log, says what a better model has to beat: the directory may hold what a run had reached
    when it was killed after its last checkpoint, and a run that goes on from there will reach it again.

    Args:
        begin: a run begins: forget the best model of an earlier one.
    """

    def __init__(self, output_dir: Path, begin: bool):
        self.path = output_dir / DIRECTORY
        if begin:
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def stats(self) -> EvalStats | None:
        """The evaluation of the model that is kept; None where there is no model."""
        try:
            return EvalStats(**json.loads((self.path / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def offer(self, stats: EvalStats, write: Callable[[Path], None]) -> bool:
        """Keep the present model if its loss is the lowest; `write` saves it to a directory. Returns whether it was."""
        best = self.stats
        if not math.isfinite(stats.loss) or (best is not None and stats.loss >= best.loss):
            return False
        write(self.path)
        # Last: a kill before this line leaves a record that the next evaluation improves on.
        (self.path / RECORD).write_text(json.dumps(asdict(stats)) + "\n", encoding="utf-8")
        return True
