"""Which blocks cross the link in one forward pass after another."""

from dataclasses import replace
from functools import cache

import pytest
from tiny_models import tiny_model
from tiny_runs import SIZES, Subject, batch_at, hyper_at, make_records, subject, tiny_engine

from slideformer.memory.host import LayerState

BLOCKS = 5
RECORDS = make_records(12)


@cache
def tiny() -> Subject:
    return subject(tiny_model("llama", num_hidden_layers=BLOCKS))


def copies(monkeypatch: pytest.MonkeyPatch, depth: int, passes: int) -> list[str]:
    """The units that were copied to the device while `passes` batches were evaluated."""
    copied: list[str] = []
    real = LayerState.copy_weights

    def copy(self: LayerState, out: object) -> None:
        copied.append(self.name)
        real(self, out)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerState, "copy_weights", copy)
    with tiny_engine(tiny(), replace(SIZES, window_depth=depth)) as engine:
        engine.evaluate([batch_at(RECORDS, 4, k) for k in range(passes)])
    return copied


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize(("depth", "sliding"), [(2, 5), (3, 4), (4, 3), (5, 0), (8, 0)])
def test_all_but_two_slots_keep_their_block(monkeypatch: pytest.MonkeyPatch, depth: int, sliding: int, passes: int):
    blocks = [unit for unit in copies(monkeypatch, depth, passes) if unit.startswith("model.layers")]
    assert len(blocks) == BLOCKS + (passes - 1) * sliding


def test_the_head_and_the_shell_come_once(monkeypatch: pytest.MonkeyPatch):
    copied = copies(monkeypatch, depth=2, passes=3)
    assert copied.count("head") == copied.count("shell") == 1


def test_training_goes_on_with_the_window_it_finds():
    with tiny_engine(tiny(), replace(SIZES, window_depth=4)) as engine:
        engine.evaluate([batch_at(RECORDS, 4, 0)])
        first = engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1)).loss
        assert engine.evaluate([batch_at(RECORDS, 4, 0)]).loss < first
