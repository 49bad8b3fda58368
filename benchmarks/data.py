"""The data path on one core: tokens a second from a JSONL file to examples, from the cache, and from batches.

    python benchmarks/data.py --model DIRECTORY_OR_HUB_ID [--records 4000]

The conversations are made of words drawn from a seed; a real file may be passed with --data.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

from slideformer.data.batches import BatchStream
from slideformer.data.load import Encoding, load_data
from slideformer.settings.data import Source

TEXT = "the of a model layer window gradient memory weights slides over and streams computes behind exactly once"
FORMATS = ("messages", "conversations", "completion", "text")


def main() -> None:
    arguments = _arguments()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    with tempfile.TemporaryDirectory() as directory:
        files = {kind: _write(Path(directory), kind, arguments.records) for kind in FORMATS}
        files = {"given": arguments.data} if arguments.data else files
        print(f"{'records':<16}{'tokens':>12}{'tokenize':>14}{'from cache':>14}{'batches':>14}   tokens/s, one core")
        for kind, file in files.items():
            print(_measure(kind, Source(path=file), tokenizer, Path(directory) / "cache"))


def _measure(kind: str, source: Source, tokenizer, cache: Path) -> str:
    encoding = Encoding(2048, "truncate", len(tokenizer), "assistant", cache)
    started = time.perf_counter()
    data = load_data([source], tokenizer, encoding)
    tokenized = time.perf_counter()
    load_data([source], tokenizer, encoding)
    read = time.perf_counter()
    stream = BatchStream(data.examples, 16, shuffle=True, seed=0)
    tokens = sum(stream.at(step).tokens for step in range(stream.steps_per_epoch))
    batched = time.perf_counter()
    seconds = (tokenized - started, read - tokenized, batched - read)
    rates = "".join(f"{tokens / second:>14,.0f}" for second in seconds)
    return f"{kind:<16}{tokens:>12,}{rates}"


def _write(directory: Path, kind: str, count: int) -> Path:
    """Conversations of three turns each way, or the same number of words in another format."""
    draw = random.Random(0)
    path = directory / f"{kind}.jsonl"

    def text() -> str:
        return " ".join(draw.choices(TEXT.split(), k=draw.randint(10, 120))) + "."

    def record() -> dict[str, object]:
        questions, answers = [text() for _ in range(3)], [text() for _ in range(3)]
        pairs = list(zip(questions, answers, strict=True))
        turns = {
            "messages": ("role", "user", "assistant", "content"),
            "conversations": ("from", "human", "gpt", "value"),
        }
        if kind in turns:
            who, user, assistant, what = turns[kind]
            return {kind: [{who: w, what: t} for pair in pairs for w, t in zip((user, assistant), pair, strict=True)]}
        if kind == "completion":
            return {"prompt": "\n".join(questions), "completion": "\n".join(answers)}
        return {"text": "\n".join(questions + answers)}

    path.write_text("".join(json.dumps(record()) + "\n" for _ in range(count)))
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="whose tokenizer")
    parser.add_argument("--data", type=Path, help="a file to use instead of made-up conversations")
    parser.add_argument("--records", type=int, default=4000, help="made-up conversations")
    return parser.parse_args()


if __name__ == "__main__":
    main()
