"""Forward passes one behind the other, for evaluation and generation: some blocks stay, the others slide."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.engine import compute
from slideformer.engine.compute import MicroBatch, Weights
from slideformer.lanes.lanes import Lanes
from slideformer.memory.head import HeadWeight, ResidentHead
from slideformer.memory.window import LayerWindow
from slideformer.models.architecture import Decoder
from slideformer.models.stand_ins import DecoderInputs

Enter = Callable[[Decoder, MicroBatch, Tensor, Weights], DecoderInputs]

STREAMING_SLOTS = 2  # one block computes, the next one arrives


class ForwardEnds:
    """What a forward pass reads outside the blocks, but for the embedding's rows.

    Args:
        shell_window: of one layer, the parameters that are in no block, and neither embedding nor head.
    """

    def __init__(self, head: HeadWeight | ResidentHead, shell_window: LayerWindow):
        self.head, self._shell_window = head, shell_window

    def fetch_shell(self) -> Weights:
        self._shell_window.fetch(0)
        return self._shell_window.layer(0)

    def release_shell(self) -> None:
        """Forward-only use of the shell is over."""
        self._shell_window.release(0)


class ForwardMachinery(Protocol):
    """What a forward pass needs of an engine, whether it trains or not."""

    decoder: Decoder
    lanes: Lanes
    window: LayerWindow

    @property
    def ends(self) -> ForwardEnds: ...

    def feed(self, micro_batches: list[Batch], seed: int) -> tuple[list[MicroBatch], Tensor, Tensor]: ...


class Passes:
    """The blocks' weights for any number of forward passes, and the head and the shell until the last is over.

    Of n blocks and D < n slots, the first D - 2 blocks stay where they are and the others take turns in the two slots
    left, so n - D + 2 blocks cross the link in a pass. With D = n none does. (Letting go of what was used longest
    ago, as a training step does, would bring all n in every pass: forward never turns around.)
    """

    def __init__(self, e: ForwardMachinery):
        self._e, self._blocks = e, e.decoder.depth
        depth = e.window.depth
        self._kept = depth if depth == self._blocks else max(0, depth - STREAMING_SLOTS)
        self._held: set[int] = set()

    def __enter__(self) -> "Passes":
        ends = self._e.ends
        self.shell, self.head = ends.fetch_shell(), ends.head.weight()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: Any) -> None:
        ends, blocks = self._e.ends, [partial(self._e.window.release, i) for i in sorted(self._held)]
        self._held.clear()
        for release in (*blocks, ends.head.release, ends.release_shell):
            try:
                release()
            except Exception:
                if failure is None:  # else it follows from that one, which is what the caller has to know
                    raise

    def blocks(self, more: bool) -> Iterator[tuple[int, Weights]]:
        """Each block's number and weights, for computation submitted before the next is asked for.

        Args:
            more: another pass may follow: its first blocks come while this one ends.
        """
        ahead = self._e.window.depth - self._kept
        coming = [i for i in range(self._blocks) if i not in self._held]
        self._e.window.expect([*coming, *(range(self._kept, self._blocks) if more else [])])
        for i in range(self._e.window.depth):
            self._fetch(i)
        for i in range(self._blocks):
            yield i, self._e.window.layer(i)
            if i >= self._kept:
                self._e.window.release(i)
                self._held.remove(i)
                following = i + ahead
                if following < self._blocks:
                    self._fetch(following)
                elif more:
                    self._fetch(self._kept + following - self._blocks)

    def hidden(
        self, micro_batches: list[Batch], enters: Sequence[Enter], more: bool
    ) -> tuple[list[MicroBatch], list[Any]]:
        """One pass: the micro-batches on the device, and their hidden states [b, t, hidden] behind the last block.

        Args:
            enters: how each of them enters the blocks.
            more: as of `blocks`.
        """
        run, decoder = self._e.lanes.compute.run, self._e.decoder
        batches, rows, _ = self._e.feed(micro_batches, seed=0)
        inputs = [run(enter, decoder, b, rows, self.shell) for enter, b in zip(enters, batches, strict=True)]
        xs = [run(compute.hidden_of, entered) for entered in inputs]
        for i, weights in self.blocks(more):
            for m, batch in enumerate(batches):
                xs[m] = run(compute.block_forward, decoder, i, weights, xs[m], inputs[m], batch)
        return batches, xs

    def _fetch(self, i: int) -> None:
        self._held.add(i)
        self._e.window.fetch(i)
