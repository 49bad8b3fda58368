"""The directory of the best model holds the one of the lowest loss, and says which it is."""

import math
from pathlib import Path

from slideformer.listeners.metrics import EvalStats
from slideformer.run.best_model import BestModel


def offer(best: BestModel, step: int, loss: float) -> bool:
    def write(directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "weights").write_text(str(step))

    return best.offer(EvalStats(step, loss, 1.0, 1, 1.0), write)


def test_only_a_lower_loss_replaces_it(tmp_path: Path):
    best = BestModel(tmp_path, begin=True)
    assert best.stats is None
    kept = [offer(best, step, loss) for step, loss in enumerate([2.0, math.nan, 1.5, 1.5, 1.7, 1.2], start=1)]
    assert kept == [True, False, True, False, False, True]
    assert (tmp_path / "best/weights").read_text() == "6"
    assert best.stats is not None and (best.stats.step, best.stats.loss) == (6, 1.2)


def test_a_run_that_goes_on_keeps_it_and_one_that_begins_does_not(tmp_path: Path):
    offer(BestModel(tmp_path, begin=True), 3, 1.0)
    assert not offer(BestModel(tmp_path, begin=False), 4, 1.1)
    assert BestModel(tmp_path, begin=True).stats is None and not (tmp_path / "best").exists()


def test_a_model_without_its_record_is_replaced(tmp_path: Path):
    offer(BestModel(tmp_path, begin=True), 3, 1.0)
    (tmp_path / "best/eval.json").write_text("{")
    assert offer(BestModel(tmp_path, begin=False), 4, 1.1)
