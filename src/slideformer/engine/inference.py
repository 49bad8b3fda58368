"""The engine that only generates: weights in host memory, a window on the device, and nothing of an optimizer."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.engine.compute import MicroBatch
from slideformer.engine.forward import ForwardEnds
from slideformer.engine.generate import OnToken, batching_for, generate
from slideformer.engine.layouts import EMBEDDING, HEAD, SHELL, layouts
from slideformer.engine.sampling import Decoding
from slideformer.engine.send_batches import send_batches
from slideformer.lanes.lanes import Lanes, lanes_for
from slideformer.memory.embedding import RowSender
from slideformer.memory.feed import TokenFeed
from slideformer.memory.head import HeadWeight
from slideformer.memory.host import HostAllocator
from slideformer.memory.weights import LayerWeights
from slideformer.memory.window import LayerWindow
from slideformer.models.architecture import Decoder
from slideformer.plan.sizes import InferenceSizes


class InferenceEngine:
    """Generates with one model through a sliding window.

    Args:
        decoder: the model, taken apart.
        sizes: what the plan decided.
        dtype: compute in bfloat16 or float32; the weights are held in it.
        lanes: by default those of the decoder's device.

    The weights are zero until `load`; `close` (or leaving the `with` block) frees pinned memory.
    """

    def __init__(self, decoder: Decoder, sizes: InferenceSizes, dtype: torch.dtype, lanes: Lanes | None = None):
        self.decoder, self.sizes = decoder, sizes
        self.lanes = lanes or lanes_for(decoder.device)
        self.allocator = HostAllocator(pin=self.lanes.device.type != "cpu")
        with self.allocator.closed_if_it_fails():
            self._build(dtype)

    def load(self, groups: Iterable[tuple[str, Mapping[str, Tensor]]]) -> None:
        """Set weights from (unit, parameter name -> values) pairs, as `parameter_groups` names them."""
        for unit, tensors in groups:
            prefix = self._prefix(unit)
            self.weights[unit].load({name.removeprefix(prefix): value for name, value in tensors.items()})
            del tensors  # before the next unit's exist

    def parameter_groups(self) -> dict[str, list[str]]:
        """Unit -> full names of its parameters, in the order in which they are used."""
        return {
            unit: [self._prefix(unit) + name for name in weights.layout.fields]
            for unit, weights in self.weights.items()
        }

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, on_token: OnToken | None = None
    ) -> list[list[int]]:
        """Answers to prompts (token ids, none empty), each without the token that stopped it.

        Args:
            on_token: told of (number of the prompt, token) as soon as it is chosen.

        Raises:
            NonFinite: the model's output is not a number.
            ValueError: a sequence is longer than `sizes` says.
        """
        sizes = self.sizes
        batching = batching_for(self.decoder, prompts, decoding, sizes.group_size, sizes.groups, sizes.max_length)
        return generate(self, prompts, decoding, batching, on_token)

    def close(self) -> None:
        """Free pinned memory."""
        try:
            if self.lanes.device.type != "cpu":
                torch.accelerator.synchronize(self.lanes.device)
        finally:
            self.allocator.close()

    def __enter__(self) -> "InferenceEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what a forward pass needs

    def feed(self, micro_batches: list[Batch], seed: int) -> tuple[list[MicroBatch], Tensor, Tensor]:
        return send_batches(micro_batches, [seed] * len(micro_batches), self._table, self._token_feed)

    def _build(self, dtype: torch.dtype) -> None:
        decoder, sizes = self.decoder, self.sizes
        self.weights = {unit: LayerWeights(layout, self.allocator, dtype) for unit, layout in layouts(decoder).items()}
        self._blocks = [self.weights[name] for name in decoder.block_names]
        self.window = self._window(self._blocks, sizes.window_depth, dtype)
        shell_window = self._window([self.weights[SHELL]], 1, dtype)
        head, table = self.weights[EMBEDDING if decoder.tied else HEAD], self.weights[EMBEDDING]
        head_weight = HeadWeight(
            self.lanes, decoder.head_shape, head.layout.numel, dtype, _always_fresh, _no_wait, head.copy_weights
        )
        self.ends = ForwardEnds(head_weight, shell_window)
        rows, width = min(sizes.pass_tokens, decoder.vocabulary), decoder.embedding_width
        self._table = RowSender(self.lanes, self.allocator, table.read_rows, rows, width, dtype)
        self._token_feed = TokenFeed(self.lanes, self.allocator, sizes.pass_indices)

    def _window(self, layers: list[LayerWeights], depth: int, dtype: torch.dtype) -> LayerWindow:
        def copy(i: int, out: Tensor) -> None:
            layers[i].copy_weights(out)

        layouts_of = [layer.layout for layer in layers]
        return LayerWindow(self.lanes, layouts_of, depth, dtype, _always_fresh, _no_wait, lambda _: copy)

    def _prefix(self, unit: str) -> str:
        return f"{unit}." if unit in self.decoder.block_names else ""


def _always_fresh(*_: int) -> bool:
    return True


def _no_wait(*_: int) -> None:
    """Nothing changes the weights."""
