"""The outcomes as docs/models.md, and what that page says of a type."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from suite import Outcome

INTRODUCTION = """# Models

What the engine makes of each type of transformers' causal language models, from its configuration alone
(`{title}`): a tiny model with every kind of layer of the family is trained for three steps here and by plain
PyTorch, in fp32, and losses, gradients and weights are compared. `make parity` writes this page, and fails if a type is
wrong or crashes.

{totals}.

- **exact**: trained as plain PyTorch trains it. The numbers are the largest differences of a loss (relative, at most
  1e-05), of a gradient of the first step (relative to the largest of its parameter, at most 1e-04), and of a weight
  after the last step (at most 1e-05, or where rounding grows faster, as in Gemma 4, as far as plain fp32 training is
  from plain fp64 training, which then stands beside it).
- **refused**: `slideformer train` refuses the model with this reason, before anything is loaded.
- **not buildable**: with transformers' own defaults there is no tiny model to compare with. The check before the first
  step of a run is made with *your* model's configuration, and decides then.

Encoders (BERT and its relatives) and the decoders of encoder-decoder models are trained as the causal language models
that transformers makes of them with `is_decoder: true`; without it they are refused.
"""
HEADS = {
    "exact": "| type | loss | gradients | weights |\n|---|---|---|---|",
    "refused": "| type | reason |\n|---|---|",
    "not buildable": "| type | reason |\n|---|---|",
    "wrong": "| type | loss | gradients | weights | worst |\n|---|---|---|---|---|",
    "crashed": "| type | error |\n|---|---|",
}


def render(outcomes: Sequence["Outcome"]) -> str:
    counts = Counter(outcome.result for outcome in outcomes)
    totals = ", ".join(f"**{counts[result]} {result}**" for result in HEADS)
    title = f"transformers {version('transformers')}, torch {version('torch').partition('+')[0]}"
    parts = [INTRODUCTION.format(title=title, totals=totals)]
    for result, head in HEADS.items():
        rows = [f"| {o.model_type} | {_cell(o.detail)} |" for o in outcomes if o.result == result]
        if rows:
            parts.append("\n".join([f"## {result.capitalize()}\n", head, *rows, ""]))
    return "\n".join(parts)


def read(page: str) -> tuple[str, dict[str, str]]:
    """(transformers' version, type -> result) as a page says."""
    found = re.search(r"`transformers ([^,]+),", page)
    assert found
    results, result = {}, ""
    for line in page.splitlines():
        if line.startswith("## "):
            result = line[3:].lower()
        elif result and (row := re.match(r"\| ([a-zA-Z0-9_.-]+) \|", line)) and row[1] != "type":
            results[row[1]] = result
    return found[1], results


def _cell(detail: str) -> str:
    return detail.replace("<", "&lt;").replace("`", "'")
