"""A parameter that a step's gradient does not reach is left alone, as in PyTorch where its `.grad` is None."""

from dataclasses import replace

import torch

from slideformer.layout import FlatLayout
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.optim.adamw import AdamWStep

LAYOUT = FlatLayout({"a": (4, 32), "b": (128,), "c": (2, 64)}, no_decay=["b"])
HYPER = AdamWStep(learning_rate=1e-2, beta1=0.9, beta2=0.99, epsilon=1e-6, weight_decay=0.1, step=1)
REACHED = [{"a", "b", "c"}, {"a", "c"}, {"c"}, {"a", "b", "c"}, {"b", "c"}]


def test_bit_for_bit_as_torch_s_fused_adamw_with_gradients_that_are_none():
    state = LayerState("layer", LAYOUT, HostAllocator(pin=False), pin_lo=False, threads=1)
    generator = torch.Generator().manual_seed(0)
    parameters = {}
    for name, field in LAYOUT.fields.items():
        value = torch.randn(field.shape, generator=generator)
        state.load(name, value)
        parameters[name] = torch.nn.Parameter(value.clone())
    groups = [
        {"params": [parameters["a"], parameters["c"]], "weight_decay": 0.1},
        {"params": [parameters["b"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), eps=1e-6, fused=True)
    for step, reached in enumerate(REACHED, start=1):
        gradient = torch.randn(LAYOUT.trained_numel, generator=generator)
        for name, view in zip(LAYOUT.fields, LAYOUT.gradient_views(gradient), strict=True):
            parameters[name].grad = view.clone() if name in reached else None
        optimizer.step()
        state.update(gradient, reached, replace(HYPER, step=step))
        for name, parameter in parameters.items():
            assert torch.equal(state.read(name, torch.float32), parameter.detach()), (step, name)
    assert state.counts.missed == {"b": 2, "a": 2}


def test_a_step_that_is_left_out_does_not_count():
    def new_state() -> LayerState:
        return LayerState("layer", LAYOUT, HostAllocator(pin=False), pin_lo=False, threads=1)

    one, other, reached = new_state(), new_state(), {"a", "b", "c"}
    first, second = torch.randn(LAYOUT.trained_numel), torch.randn(LAYOUT.trained_numel)
    one.update(first, reached, replace(HYPER, step=1))
    one.counts.skip()
    one.update(second, reached, replace(HYPER, step=3))
    other.update(first, reached, replace(HYPER, step=1))
    other.update(second, reached, replace(HYPER, step=2))
    assert one.counts.missed == {"a": 1, "b": 1, "c": 1}
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
