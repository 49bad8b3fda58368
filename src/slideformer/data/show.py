"""What a run would train on, shown before it runs: samples with trained tokens coloured, lengths, counts, packing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from slideformer.data.chat import IGNORED
from slideformer.data.examples import DataReport, Example
from slideformer.data.load import LoadedData
from slideformer.data.packing import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED = "bold green"
BINS = 10
BAR_WIDTH = 40


def show(
    data: LoadedData,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    names: Sequence[str],
    packed: Rows,
    max_length: int,
    samples: int,
    console: Console,
) -> None:
    """Print it all.

    Args:
        tokenizer: None shows samples as token ids.
        names: of the sources, in their order.
        packed: what stands in the rows of the first epoch when rows of `max_length` are packed.
        samples: how many examples, evenly spaced over the data.
    """
    count = len(data.examples)
    for number in range(min(samples, count)):
        example = data.examples[number * count // min(samples, count)]
        console.rule(f"record {example.index}, {len(example.input_ids)} tokens; trained ones in green", align="left")
        console.print(coloured(example, tokenizer))
    console.rule("lengths in tokens", align="left")
    console.print(histogram(data.examples.lengths))
    console.print(_counts(data.reports, names))
    lengths = data.examples.lengths.numpy()
    padded, filled = padded_share(lengths.tolist()), packed.filled_share(lengths, max_length)
    console.print(f"{padded:.1%} of a row is tokens when 8 records are padded to their longest")
    console.print(f"{filled:.1%} is with packing: true (rows of {max_length:,}: {len(packed):,} in the first epoch)")


def coloured(example: Example, tokenizer: "PreTrainedTokenizerBase | None") -> Text:
    """The text of an example; what is trained is green and bold."""
    ids, trained = example.input_ids.tolist(), (example.labels != IGNORED).tolist()
    text, start = Text(), 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or trained[end] != trained[start]:
            run = ids[start:end]
            words = str(tokenizer.decode(run)) if tokenizer else " ".join(map(str, run)) + " "
            text.append(words, style=TRAINED if trained[start] else "")
            start = end
    return text


def histogram(lengths: Tensor) -> Text:
    """At most ten bars of equal width.

    Args:
        lengths: [examples] integers.
    """
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // BINS)
    counts = torch.bincount((lengths - low) // width).tolist()
    lines = []
    for number, count in enumerate(counts):
        first = low + number * width
        bar = "█" * -(-BAR_WIDTH * count // max(counts))
        lines.append(f"{first:>7,} - {first + width - 1:<7,} {bar:<{BAR_WIDTH}} {count:,}")
    return Text("\n".join(lines))


def padded_share(lengths: Sequence[int], batch_size: int = 8) -> float:
    """Tokens over places, when rows in the given order are padded to the longest of their batch."""
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def _counts(reports: Sequence[DataReport], names: Sequence[str]) -> Table:
    rows = list(zip(names, reports, strict=True))
    if len(rows) > 1:
        rows.append(("all", sum(reports[1:], reports[0])))
    columns = {
        "records": "records", "kept": "kept", "truncated": "truncated", "too long": "dropped_long",
        "untrained": "dropped_untrained", "tokens": "tokens", "trained": "trained_tokens",
    }  # fmt: skip
    if any(report.malformed for report in reports):
        columns["left out"] = "malformed"
    table = Table(box=None, pad_edge=False)
    table.add_column("source", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right")
    for name, report in rows:
        table.add_row(name, *(f"{getattr(report, column):,}" for column in columns.values()))
    return table
