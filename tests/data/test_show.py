"""What a person sees of the data before a run."""

import re
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from slideformer.data.chat import encode
from slideformer.data.examples import Example, make_examples
from slideformer.data.load import LoadedData
from slideformer.data.mixture import Mixture
from slideformer.data.packing import pack
from slideformer.data.show import TRAINED, coloured, histogram, padded_share, show
from slideformer.data.source import Record

TURNS = [{"role": "user", "content": "two plus two"}, {"role": "assistant", "content": "is four"}]
CHAT = Record(0, "a.jsonl:1", "messages", {"messages": TURNS})


def test_trained_tokens_are_coloured_and_the_text_is_whole(tokenizer: PreTrainedTokenizerFast):
    example = Example(0, *(torch.tensor(column, dtype=torch.int32) for column in encode(CHAT, tokenizer)))
    text = coloured(example, tokenizer)
    assert text.plain == tokenizer.apply_chat_template(TURNS, tokenize=False)
    spans = [text.plain[span.start : span.end] for span in text.spans if span.style == TRAINED]
    assert spans == ["is four<|im_end|>\n"]


def test_without_a_tokenizer_ids_are_shown():
    example = Example(0, torch.tensor([5, 6, 7]), torch.tensor([-100, 6, 7]))
    assert coloured(example, None).plain == "5 6 7 "


@pytest.mark.parametrize("lengths", [[3], [3, 3, 4], [1, 1024], list(range(2, 99)), [7] * 5 + [600]])
def test_a_histogram_counts_every_example_once(lengths: list[int]):
    lines = histogram(torch.tensor(lengths)).plain.splitlines()
    assert len(lines) <= 10 and sum(int(line.split()[-1]) for line in lines) == len(lengths)
    for line in lines:
        low, _, high, *_ = line.replace(",", "").split()
        assert int(line.split()[-1]) == sum(int(low) <= length <= int(high) for length in lengths)


def test_the_share_of_padding():
    assert padded_share([4, 2, 6], batch_size=2) == 12 / (4 + 4 + 6)


def test_everything_is_on_one_page(tokenizer: PreTrainedTokenizerFast):
    examples, report = make_examples(
        [CHAT, Record(1, "a.jsonl:2", "text", {"text": "hello"})],
        tokenizer, max_length=64, too_long="drop", vocab_size=320,
    )  # fmt: skip
    data = LoadedData(examples, [report], Mixture([2], [1.0]))
    console = Console(file=StringIO(), width=100, force_terminal=True, color_system="standard")
    rows = pack(np.arange(2), examples.lengths.numpy(), 64, None)
    show(data, tokenizer, names=["a.jsonl"], packed=rows, max_length=64, samples=5, console=console)
    assert isinstance(console.file, StringIO)
    page = console.file.getvalue()
    assert "\x1b[1;32mis four" in page and "two plus two" in page and "hello" in page
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", page).split())
    share = int(examples.lengths.sum()) / 64
    assert "a.jsonl" in plain and f"{share:.1%} is with packing: true (rows of 64: 1 in the first epoch)" in plain


def test_records_that_were_left_out_are_shown(tokenizer: PreTrainedTokenizerFast):
    examples, report = make_examples([CHAT], tokenizer, max_length=64, too_long="drop", vocab_size=320)
    report.malformed, report.records = 41, 42
    data = LoadedData(examples, [report], Mixture([1], [1.0]))
    console = Console(file=StringIO(), width=100)
    rows = pack(np.arange(1), examples.lengths.numpy(), 64, None)
    show(data, tokenizer, names=["a.jsonl"], packed=rows, max_length=64, samples=0, console=console)
    assert isinstance(console.file, StringIO)
    page = console.file.getvalue()
    assert "left out" in page and " 41" in page
