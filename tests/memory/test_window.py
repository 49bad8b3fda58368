"""The window holds what was fetched, keeps it while it may, and refuses what was not fetched."""

from typing import Any

import pytest
import torch

from slideformer.layout import FlatLayout
from slideformer.memory.window import LayerNotFetched, LayerWindow
from slideformer.streams import inline_lanes

WIDTHS = [4, 8, 6, 8, 4]
LAYOUTS = [FlatLayout({"w": (width,)}) for width in WIDTHS]


class Layers:
    """Host weights, layer i full of 10 * version + i, and whether they are fresh."""

    def __init__(self) -> None:
        self.version = [0] * len(WIDTHS)
        self.stale: set[int] = set()
        self.copies: list[int] = []

    def fresh(self, i: int) -> bool:
        return i not in self.stale

    def wait_fresh(self, i: int) -> None:
        if i in self.stale:
            self.stale.remove(i)
            self.version[i] += 1

    def copy(self, i: int, out: torch.Tensor) -> None:
        assert i not in self.stale
        self.copies.append(i)
        out.fill_(10 * self.version[i] + i)


@pytest.fixture
def layers() -> Layers:
    return Layers()


def new_window(layers: Layers, depth: int, **changes: Any) -> LayerWindow:
    lanes = inline_lanes(torch.device("cpu"))
    asked = (layers.fresh, layers.wait_fresh, lambda _: layers.copy)
    return LayerWindow(lanes, LAYOUTS, depth, torch.float32, *asked, **changes)


def use(window: LayerWindow, i: int) -> float:
    (view,) = window.layer(i).values()
    assert view.shape == (WIDTHS[i],)
    assert bool((view == view[0]).all())
    return float(view[0])


def test_slots_have_the_size_of_the_largest_layer():
    assert LayerWindow.bytes_needed(LAYOUTS, 3, torch.bfloat16) == 3 * 128 * 2
    assert LayerWindow.bytes_needed(LAYOUTS, 9, torch.float32) == 5 * 128 * 4


def test_depth_is_at_most_the_layers(layers: Layers):
    assert new_window(layers, 9).depth == 5


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_pass_copies_each_layer_once_and_sees_its_weights(layers: Layers, depth: int):
    window = new_window(layers, depth)
    for i in range(depth):
        window.fetch(i)
    for i in range(5):
        assert use(window, i) == i and i in window.holds() and len(window.holds()) <= depth
        window.release(i)
        window.fetch(i + depth)
    assert layers.copies == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_turn_around_is_free(layers: Layers, depth: int):
    window = new_window(layers, depth)
    for i in range(5):
        window.fetch(i)
        window.layer(i)
        window.release(i)
    assert window.holds() == list(range(5 - depth, 5))
    layers.copies.clear()
    for i in reversed(range(5)):
        window.fetch(i)
        assert use(window, i) == i
        window.release(i)
    assert layers.copies == list(reversed(range(5 - depth)))


def test_a_layer_not_fetched_is_an_error_that_says_what_is_there(layers: Layers):
    window = new_window(layers, 2)
    window.fetch(1)
    with pytest.raises(LayerNotFetched, match=r"layer 0 was used but not fetched; the window holds \[1\]"):
        window.layer(0)
    with pytest.raises(LayerNotFetched, match="layer 3 was released but not fetched"):
        window.release(3)


def test_a_released_layer_is_not_used_without_another_fetch(layers: Layers):
    window = new_window(layers, 2)
    window.fetch(1)
    window.release(1)
    with pytest.raises(LayerNotFetched):
        window.layer(1)
    with pytest.raises(LayerNotFetched):
        window.release(1)
    window.fetch(1)
    assert use(window, 1) == 1 and layers.copies == [1]


def test_holding_every_slot_is_an_error(layers: Layers):
    window = new_window(layers, 2)
    window.fetch(0)
    window.fetch(1)
    with pytest.raises(LayerNotFetched, match=r"all 2 slots are held \(layers \[0, 1\]\)"):
        window.fetch(2)


def test_fetching_twice_copies_once_and_beyond_the_ends_is_nothing(layers: Layers):
    window = new_window(layers, 3)
    for i in (-1, 2, 2, 5):
        window.fetch(i)
    assert layers.copies == [2] and window.holds() == [2]


def test_weights_that_changed_are_copied_again(layers: Layers):
    window = new_window(layers, 3)
    window.fetch(1)
    window.release(1)
    window.invalidate(1)
    layers.version[1] = 7
    assert window.holds() == []
    window.fetch(1)
    assert use(window, 1) == 71


def test_a_held_layer_cannot_change(layers: Layers):
    window = new_window(layers, 3)
    window.fetch(1)
    with pytest.raises(AssertionError, match="layer 1 changes while it is held"):
        window.invalidate(1)
    window.invalidate(4)  # not in the window: nothing to do


def test_an_invalid_slot_is_used_before_a_layer_is_pushed_out(layers: Layers):
    window = new_window(layers, 3)
    for i in range(3):
        window.fetch(i)
        window.release(i)
    window.invalidate(2)
    window.fetch(4)
    assert window.holds() == [0, 1, 4]


def test_a_stale_layer_is_copied_when_it_is_fresh_and_not_before(layers: Layers):
    window = new_window(layers, 3)
    layers.stale = {0}
    window.fetch(0)
    assert layers.copies == []
    layers.wait_fresh(0)
    window.fetch(1)  # a later fetch starts what has become possible
    assert layers.copies == [0, 1]
    assert use(window, 0) == 10 and use(window, 1) == 1


def test_copies_go_in_the_order_of_use(layers: Layers):
    """One that is fresh does not overtake: it may have to wait for its slot, and who is used before it for it."""
    window = new_window(layers, 3)
    layers.stale = {0, 1}
    window.fetch(0)
    window.fetch(1)
    layers.wait_fresh(1)
    window.fetch(2)
    assert layers.copies == []
    assert use(window, 0) == 10 and layers.copies == [0, 1, 2]


def test_a_layer_that_was_let_go_before_it_came_is_not_copied(layers: Layers):
    window = new_window(layers, 3)
    layers.stale = {0}
    window.fetch(0)
    window.fetch(1)
    window.release(0)
    assert window.holds() == [1] and layers.copies == [1]
    window.fetch(0)
    assert use(window, 0) == 10 and use(window, 1) == 1
