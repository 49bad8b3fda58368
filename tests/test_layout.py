"""A flat layout gives each parameter its own aligned place, and covers the vector with decay runs exactly once."""

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from slideformer.layout import ALIGN_ELEMENTS, FlatLayout

SHAPES = {"q.weight": (3, 5), "q.bias": (3,), "norm.weight": (128,), "up.weight": (2, 128), "scalar": ()}


def test_views_are_the_parameters_places_in_their_shapes():
    layout = FlatLayout(SHAPES)
    flat = torch.arange(layout.numel, dtype=torch.float32)
    views = layout.views(flat)
    assert {name: tuple(view.shape) for name, view in views.items()} == SHAPES
    assert [int(view.flatten()[0]) for view in views.values()] == [0, 128, 256, 384, 640]
    assert layout.numel == 768 and layout.parameter_count == 15 + 3 + 128 + 256 + 1
    views["q.bias"].fill_(-1)
    assert flat[128:131].tolist() == [-1] * 3 and flat[131] == 131


def test_padding_views_are_everything_else():
    layout = FlatLayout(SHAPES)
    flat = torch.zeros(layout.numel)
    for view in layout.views(flat).values():
        view += 1
    for padding in layout.padding_views(flat):
        padding += 1
    assert torch.equal(flat, torch.ones(layout.numel))
    assert [padding.numel() for padding in layout.padding_views(flat)] == [113, 125, 127]


def test_decay_spans_merge_neighbours_of_one_kind():
    layout = FlatLayout(SHAPES, no_decay=["q.bias", "norm.weight", "not.here"])
    assert layout.decay_spans() == [(0, 128, True), (128, 384, False), (384, 768, True)]


def test_an_empty_layout():
    layout = FlatLayout({})
    assert layout.numel == layout.parameter_count == 0
    assert (
        layout.decay_spans() == [] and layout.views(torch.zeros(0)) == {} and layout.padding_views(torch.zeros(0)) == []
    )


shapes = st.lists(st.tuples(st.lists(st.integers(1, 20), max_size=3).map(tuple), st.booleans()), max_size=8)


@given(shapes)
def test_any_layout_is_aligned_disjoint_and_covered(entries: list[tuple[tuple[int, ...], bool]]):
    named = {f"p{k}": shape for k, (shape, _) in enumerate(entries)}
    layout = FlatLayout(named, no_decay=[f"p{k}" for k, (_, free) in enumerate(entries) if free])
    assert layout.numel % ALIGN_ELEMENTS == 0
    assert layout.parameter_count == sum(prod(shape) for shape in named.values())
    flat = torch.zeros(layout.numel)
    for view in [*layout.views(flat).values(), *layout.padding_views(flat)]:
        view += 1
    assert bool((flat == 1).all())
    assert all(field.start % ALIGN_ELEMENTS == 0 for field in layout.fields.values())
    spans = layout.decay_spans()
    assert [start for start, _, _ in spans] == [0, *(stop for _, stop, _ in spans[:-1])][: len(spans)]
    assert not spans or spans[-1][1] == layout.numel
    for field in layout.fields.values():
        assert [decay for start, stop, decay in spans if start <= field.start < stop] == [field.decay]
