"""Every type of transformers' causal language models, trained by the engine and by plain PyTorch, and compared.

    make parity                                            # all types; writes docs/models.md
    PYTHONPATH=tests python -m parity.suite llama mamba2   # some types; prints them

Exits 1 if a type is wrong or crashes.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

STEPS = 3
DEADLINE_SECONDS = 240
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
Result = Literal["exact", "refused", "not buildable", "wrong", "crashed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one type; `detail` is the reason, or how far the two trainings are apart."""

    model_type: str
    result: Result
    detail: str


def check(model_type: str) -> Outcome:
    """Build a tiny model of a type from its configuration alone, and train it both ways."""
    import torch
    from parity.catalog import config_of

    from slideformer.engine.parity import compare
    from slideformer.errors import UnsupportedModel
    from slideformer.models.architecture import Decoder
    from slideformer.models.hub import refuse_unsupported
    from slideformer.models.tiny import shrink
    from slideformer.models.tiny_model import build_tiny, refuse_two_way

    try:
        config = config_of(model_type)
        refuse_unsupported(config)
        tiny = shrink(config)
    except UnsupportedModel as refusal:
        return Outcome(model_type, "refused", refusal.message)
    except Exception as error:
        return Outcome(model_type, "not buildable", _in_one_line(error))
    try:
        model = build_tiny(tiny)
        plain_forward(model)
    except Exception as error:  # transformers' own: with this configuration there is nothing to compare with
        return Outcome(model_type, "not buildable", _in_one_line(error))
    try:
        refuse_two_way(model, tiny.get_text_config().vocab_size)
        compared = compare(model, Decoder(tiny, torch.device("cpu")), STEPS)
    except UnsupportedModel as refusal:
        return Outcome(model_type, "refused", refusal.message)
    beyond = f" (fp32 from fp64: {compared.rounding:.0e})" if compared.rounding else ""
    detail = f"{compared.loss_error:.0e} | {compared.gradient_error:.0e} | {compared.weight_error:.0e}{beyond}"
    if compared.exact:
        return Outcome(model_type, "exact", detail)
    return Outcome(model_type, "wrong", f"{detail} | {compared.worst}")


def plain_forward(model: Any) -> None:
    import torch

    with torch.no_grad():
        model(input_ids=torch.full((1, 8), 3), use_cache=False)


def check_safely(model_type: str) -> Outcome:
    """`check`, with a deadline, and an exception as an outcome."""

    def out_of_time(*_: Any) -> None:
        raise TimeoutError(f"not done after {DEADLINE_SECONDS} s")

    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(DEADLINE_SECONDS)
    try:
        return check(model_type)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(model_type, "crashed", f"{_in_one_line(error)} ({Path(frame.filename).name}:{frame.lineno})")
    finally:
        signal.alarm(0)


def check_all(model_types: Sequence[str], processes: int) -> Iterator[Outcome]:
    """In order, as they come."""
    with multiprocessing.get_context("spawn").Pool(processes, _quiet) as pool:
        yield from pool.imap(check_safely, model_types)


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:157]}{'...' if len(text) > 157 else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types (default: all, and the page is written)")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2)))
    arguments = parser.parse_args()
    from parity.catalog import all_types
    from parity.page import render

    outcomes = []
    for outcome in check_all(arguments.types or all_types(), arguments.processes):
        outcomes.append(outcome)
        print(f"{outcome.model_type:<28} {outcome.result:<14} {outcome.detail}", flush=True)
    totals = Counter(outcome.result for outcome in outcomes)
    print(", ".join(f"{count} {result}" for result, count in totals.most_common()))
    if not arguments.types:
        PAGE.write_text(render(outcomes), encoding="utf-8")
    return int(totals["wrong"] + totals["crashed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
