"""What computation needs of device memory: one block and one head chunk are run before anything is allocated."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.engine import compute
from slideformer.engine.layouts import EMBEDDING, HEAD, SHELL, layouts
from slideformer.engine.send_batches import documents_on
from slideformer.engine.tape import Level
from slideformer.kernels.attention import preferred_attention
from slideformer.layout import FlatLayout
from slideformer.memory.gradients import Accumulator
from slideformer.models.architecture import Decoder
from slideformer.models.shard_check import head_shards_exactly
from slideformer.models.stand_ins import DecoderInputs
from slideformer.plan.footprint import ModelSizes, Work
from slideformer.plan.planner import TARGET_TOKENS

HEAD_TOKENS = 256  # of the measured head chunk
Row = tuple[int, ...] | None  # tokens of the documents of a packed row


def model_sizes(decoder: Decoder) -> ModelSizes:
    """Layouts and widths of a model."""
    with decoder.unpacked():
        exactly = head_shards_exactly(decoder.config, decoder.trust_remote_code)
    buffers = {id(b): b for module in [decoder.model, *decoder.blocks] for b in module.buffers()}.values()
    return ModelSizes(
        layouts(decoder),
        decoder.block_names,
        EMBEDDING,
        SHELL,
        EMBEDDING if decoder.tied else HEAD,
        decoder.vocabulary,
        decoder.embedding_width,
        decoder.hidden,
        sum(buffer.nbytes for buffer in buffers),
        exactly,
    )


def measure_work(decoder: Decoder, length: int, dtype: torch.dtype, rows: Sequence[Row] = (None,)) -> Work:
    """Run every kind of block over one and over many sequences of `length`, and the head over a few tokens.

    On the CPU, which does not count its allocations, this is an estimate from what autograd saves.

    Args:
        rows: documents of packed rows, at most `length` tokens in each; the hungriest counts. None: not packed.
    """
    if decoder.device.type == "cpu":
        return _estimate_on_cpu(decoder, length, dtype, rows[0])
    before = torch.cuda.memory_allocated(decoder.device)
    kinds = [(i, row) for i in block_kinds(decoder) for row in rows]
    for warm_up in (_run_block(decoder, *kinds[0], 1, length, dtype), _run_head(decoder, dtype, 16)):
        peak_bytes(warm_up)  # libraries allocate their workspaces now
    del warm_up
    torch.accelerator.synchronize()
    workspace = torch.cuda.memory_allocated(decoder.device) - before
    slope, fixed = line_through(
        lambda b: max(peak_bytes(_run_block(decoder, *kind, b, length, dtype)) for kind in kinds), length
    )  # fmt: skip
    whole, outputs = (_kept_bytes(decoder, kinds, level, length, dtype) for level in ("all", "outputs"))
    few, more = (peak_bytes(_run_head(decoder, dtype, tokens)) for tokens in (HEAD_TOKENS, 2 * HEAD_TOKENS))
    inputs = inputs_bytes(decoder, length, dtype, rows[0])
    return Work(slope, fixed, inputs, (more - few) // HEAD_TOKENS, workspace, whole, outputs)


def peak_bytes(work: Callable[[], object]) -> int:
    """Device memory that `work` needs beside what is allocated before it."""
    torch.accelerator.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with preferred_attention(torch.device("cuda")):
        work()
    torch.accelerator.synchronize()
    return torch.cuda.max_memory_allocated() - before


def line_through(bytes_of: Callable[[int], int], length: int) -> tuple[int, int]:
    """(bytes a sequence, fixed bytes) from one sequence and from as many as a micro-batch preferably has.

    A peak is the largest of several moments, each linear in the sequences: between two measured points the line through
    them is never below it, but beyond them it can be.
    """
    one, many = bytes_of(1), max(2, TARGET_TOKENS // length)
    while True:
        try:
            slope = -(-(bytes_of(many) - one) // (many - 1))
            return slope, one - slope
        except torch.OutOfMemoryError:  # then no micro-batch will have so many
            if many == 2:
                raise
            many = max(2, many // 2)


def _kept_bytes(
    decoder: Decoder, kinds: Sequence[tuple[int, Row]], level: Level, length: int, dtype: torch.dtype
) -> int:
    """Of one sequence, of the kind of block that holds the most."""
    held = ([_held_by(decoder, *kind, batch, length, dtype, level) for batch in (1, 2)] for kind in kinds)
    return max(two - one for one, two in held)


def _held_by(decoder: Decoder, i: int, row: Row, batch: int, length: int, dtype: torch.dtype, level: Level) -> int:
    """Device memory that a block holds between forward and backward."""
    weights = _layout(decoder, i).views(zeros_for(decoder, i, dtype))
    inputs, micro_batch = example_inputs(decoder, batch, length, dtype, row)
    before = torch.cuda.memory_allocated()
    with preferred_attention(decoder.device):
        tape = compute.block_recorded(decoder, i, weights, inputs.hidden, inputs, micro_batch, level)
    tape.take_output()
    return torch.cuda.memory_allocated() - before


def _layout(decoder: Decoder, i: int) -> FlatLayout:
    return layouts(decoder)[decoder.block_names[i]]


def zeros_for(decoder: Decoder, i: int, dtype: torch.dtype) -> Tensor:
    """A slot for block i."""
    return torch.zeros(_layout(decoder, i).numel, dtype=dtype, device=decoder.device)


def _run_block(decoder: Decoder, i: int, row: Row, batch: int, length: int, dtype: torch.dtype) -> Callable[[], object]:
    layout = _layout(decoder, i)
    weights = layout.views(zeros_for(decoder, i, dtype))
    into = Accumulator(layout, torch.empty(layout.trained_numel, dtype=dtype, device=decoder.device))
    inputs, micro_batch = example_inputs(decoder, batch, length, dtype, row)
    x, dy = torch.randn_like(inputs.hidden), torch.randn_like(inputs.hidden)

    def run() -> Tensor | None:
        tape = compute.block_recorded(decoder, i, weights, x, inputs, micro_batch, "recompute")
        tape.take_output()
        return compute.block_backward(decoder, i, tape, weights, x, inputs, dy, into)

    return run


def _run_head(decoder: Decoder, dtype: torch.dtype, tokens: int) -> Callable[[], object]:
    weight = torch.zeros(decoder.head_shape, dtype=dtype, device=decoder.device)
    gradient = torch.zeros(decoder.head_shape, dtype=torch.float32, device=decoder.device)
    layout = layouts(decoder)[SHELL]
    shell = layout.views(torch.zeros(layout.numel, dtype=dtype, device=decoder.device))
    into = Accumulator(layout, torch.empty(layout.trained_numel, device=decoder.device))
    x = torch.randn(decoder.boundary.of(1, tokens), dtype=dtype, device=decoder.device)
    ids = torch.arange(tokens, device=decoder.device)
    batch = compute.MicroBatch(ids[None], ids[None], ids, ids % decoder.vocabulary, seed=0)
    loss = torch.zeros((), device=decoder.device)

    def run() -> Tensor:
        return compute.head_loss_and_gradient(
            decoder, weight, gradient, shell, x, batch, tokens, tokens, loss, into
        )  # fmt: skip

    return run


def example_inputs(
    decoder: Decoder, batch: int, length: int, dtype: torch.dtype, row: Row = None
) -> tuple[DecoderInputs, compute.MicroBatch]:
    """What `Decoder.enter` gives for token 0 everywhere."""
    zeros = torch.zeros(batch, length, dtype=torch.int64)
    packed = Batch(zeros, zeros, (sum(row or (length,)),) * batch, (), (row,) * batch if row else None)
    ids = zeros.to(decoder.device)
    micro_batch = compute.MicroBatch(ids, ids, ids[0, :0], ids[0, :0], 0, documents_on(packed, decoder.device))
    rows = torch.zeros(1, decoder.embedding_width, dtype=dtype, device=decoder.device)
    shell = {name: torch.zeros(s, dtype=dtype, device=decoder.device) for name, s in decoder.shell_shapes.items()}
    return compute.enter(decoder, micro_batch, rows, shell), micro_batch


def block_kinds(decoder: Decoder) -> list[int]:
    """One block of each kind."""
    return [blocks[0] for blocks in blocks_by_kind(decoder)]


def blocks_by_kind(decoder: Decoder) -> list[list[int]]:
    """The blocks of each kind: same class, same parameters, same attention."""
    found: dict[object, list[int]] = {}
    for i, block in enumerate(decoder.blocks):
        attention = [getattr(m, "sliding_window", None) for m in block.modules() if hasattr(m, "sliding_window")]
        kind = (type(block), tuple(decoder.block_shapes(i).items()), str(attention))
        found.setdefault(kind, []).append(i)
    return list(found.values())


def inputs_bytes(decoder: Decoder, length: int, dtype: torch.dtype, row: Row = None) -> int:
    """Masks and rotary tables that the blocks of one sequence share."""
    inputs, _ = example_inputs(decoder, 1, length, dtype, row)
    return sum(tensor.nbytes for tensor in _tensors([(call.args, call.kwargs) for call in inputs.calls]))


def _tensors(values: object) -> Iterator[Tensor]:
    """Distinct tensors inside nested tuples, lists and dicts."""
    seen: set[int] = set()
    stack = [values]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            yield value
        elif isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, tuple | list):
            stack.extend(value)


def _estimate_on_cpu(decoder: Decoder, length: int, dtype: torch.dtype, row: Row) -> Work:
    short = min(length, 64)
    short_row = (min(row[0], short),) if row else None  # the rest is padding: as hungry, and without positions
    saved = max(saved_bytes(decoder, i, short, dtype, short_row) for i in block_kinds(decoder)) * length // short
    fixed = max(layout.numel for layout in layouts(decoder).values()) * dtype.itemsize
    inputs, logits = inputs_bytes(decoder, length, dtype, row), decoder.vocabulary * (dtype.itemsize + 12)
    outputs = max(output_bytes(decoder, i, short, dtype, short_row) for i in block_kinds(decoder)) * length // short
    return Work(2 * saved, fixed, inputs, logits, 0, kept_bytes=saved, kept_outputs_bytes=min(outputs, saved))


def output_bytes(decoder: Decoder, i: int, length: int, dtype: torch.dtype, row: Row = None) -> int:
    """What the expensive operators of block i give that is needed again, over one sequence."""
    inputs, micro_batch = example_inputs(decoder, 1, length, dtype, row)
    weights = _layout(decoder, i).views(zeros_for(decoder, i, dtype))
    return compute.block_recorded(decoder, i, weights, inputs.hidden, inputs, micro_batch, "outputs").output_bytes


def saved_bytes(decoder: Decoder, i: int, length: int, dtype: torch.dtype, row: Row = None) -> int:
    """What autograd saves of block i over one sequence, weights left out."""
    weights = {n: torch.zeros(s, dtype=dtype, requires_grad=True) for n, s in decoder.block_shapes(i).items()}
    own = {w.untyped_storage().data_ptr() for w in weights.values()}
    inputs, _ = example_inputs(decoder, 1, length, dtype, row)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoder.block(i, weights, inputs.hidden.requires_grad_(), inputs, 0)
    return sum(saved.values())
