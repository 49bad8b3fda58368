"""Counts what each kind of block computes, on the meta device: nothing is calculated and nothing allocated.

Matrix products are counted by PyTorch's own counter. Everything else is limited by memory, so the bytes of its operands
and results are counted. Three lengths give what is fixed, what grows with the tokens and what with their square.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from slideformer.engine.measure import blocks_by_kind, example_inputs
from slideformer.models.architecture import Decoder
from slideformer.models.stand_ins import DecoderInputs
from slideformer.plan.operations import BlockOperations, ModelOperations, Operations

LENGTHS = (32, 64, 96)
MATMULS = ("mm", "bmm", "addmm", "baddbmm", "_grouped_mm", "convolution")  # their operands come with their rate
# Attention multiplies twice in forward; a fused backward five times, as it computes the scores again.
ATTENTION_BACKWARD = 5 / 2

Counts = tuple[float, float, float]  # operations of matrix products, bytes of everything else, operators called


def count_operations(decoder: Decoder, dtype: torch.dtype, fused: bool) -> ModelOperations | None:
    """Of all blocks of a decoder on the CPU; None for a model whose work depends on its values and is not counted.

    Args:
        decoder: with PyTorch's own operations in its blocks; others cannot be counted.
        fused: whether neighbouring operations will be one kernel, as Liger's.
    """
    blocks: list[BlockOperations | None] = [None] * decoder.depth
    for kind in blocks_by_kind(decoder):
        try:
            counted = _count_block(decoder, kind[0], dtype, fused)
        except (RuntimeError, NotImplementedError):  # a meta tensor has no values to route by
            return None
        for i in kind:
            blocks[i] = counted
    head = decoder.head_shape
    return ModelOperations([block for block in blocks if block], head[0] * head[1])


def _count_block(decoder: Decoder, i: int, dtype: torch.dtype, fused: bool) -> BlockOperations:
    passes = [_passes(decoder, i, length, dtype, fused) for length in LENGTHS]
    forward = _operations([forward for forward, _ in passes])
    backward = _operations([backward for _, backward in passes])
    return BlockOperations(
        forward, replace(backward, attention_flops=forward.attention_flops * ATTENTION_BACKWARD)
    )  # fmt: skip


def _passes(decoder: Decoder, i: int, length: int, dtype: torch.dtype, fused: bool) -> tuple[Counts, Counts]:
    """(forward, backward) over one sequence."""
    inputs = _on_meta(example_inputs(decoder, 1, length, dtype)[0])
    shapes = decoder.block_shapes(i).items()
    weights = {n: torch.empty(s, dtype=dtype, device="meta", requires_grad=True) for n, s in shapes}
    x = inputs.hidden.requires_grad_()
    results: list[Tensor] = []
    forward = _counted(lambda: results.append(decoder.block(i, weights, x, inputs, 0)), fused)
    dy, wanted = torch.empty_like(results[0]), [x, *weights.values()]
    return forward, _counted(lambda: torch.autograd.grad(results, wanted, [dy], allow_unused=True), fused)


def _on_meta(inputs: DecoderInputs) -> DecoderInputs:
    def move(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    calls = [replace(c, args=tree_map(move, c.args), kwargs=tree_map(move, c.kwargs)) for c in inputs.calls]
    return replace(inputs, hidden=inputs.hidden.detach().to("meta"), calls=calls)


class TrafficCounter(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views move nothing, and matrix products are left out.

    Args:
        fused: count as if neighbours were one kernel: what one of them hands to the next stays in registers, and
            reaches memory only for a matrix product. Such are the kernels that runs on a GPU use.
    """

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self._fused = fused
        self._inside: dict[int, Tensor] = {}  # results that have not reached memory; held, so that ids stay theirs
        self._read: dict[int, Tensor] = {}
        self.total_bytes = 0
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        operands = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        results = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        name = func.overloadpacket.__name__
        if func.is_view or name == "_unsafe_view":
            if id(operands[0]) in self._inside:
                self._inside.update((id(value), value) for value in results)
        elif name in MATMULS:
            self._add(value for value in operands if self._inside.pop(id(value), None) is not None)
        elif not name.startswith("empty"):
            self._elementwise(operands, results)
        return result

    def _elementwise(self, operands: list[Tensor], results: list[Tensor]) -> None:
        if not self._fused:
            self._add([*operands, *results])
            return
        self._add(v for v in operands if id(v) not in self._inside and id(v) not in self._read)
        self._read.update((id(value), value) for value in operands)
        self._inside.update((id(value), value) for value in results)

    def _add(self, tensors: Iterable[Tensor]) -> None:
        self.total_bytes += sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _counted(work: Callable[[], object], fused: bool) -> Counts:
    traffic = TrafficCounter(fused)
    with FlopCounterMode(display=False) as flops, traffic:
        work()
    return flops.get_total_flops(), traffic.total_bytes, traffic.calls


def _operations(counts: Sequence[Counts]) -> Operations:
    """What the counts over `LENGTHS` say. Bytes that grow with the square are scores, which fused attention has not."""
    _, matmul, attention = _parabola([flops for flops, _, _ in counts])
    fixed, memory, _ = _parabola([size for _, size, _ in counts])
    return Operations(matmul, attention, memory, max(0.0, fixed), calls=counts[0][2])


def _parabola(values: Sequence[float]) -> tuple[float, float, float]:
    """(a, b, c) with a + b L + c L^2 through the values at `LENGTHS`."""
    points = torch.tensor(LENGTHS, dtype=torch.float64)
    solved = torch.linalg.solve(torch.vander(points, increasing=True), torch.tensor(values, dtype=torch.float64))
    a, b, c = (round(value, 3) for value in solved.tolist())
    return a, b, c
