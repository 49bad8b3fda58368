"""The disk tier: GB/s of records beside plain buffered files, its checksum, and a small step by blocks on disk.

    python benchmarks/disk.py [--directory .] [--record 256MiB] [--records 8] [--rounds 3] [--json FILE]

Rates are of all records, written or read one behind another as training does it (two threads, direct IO, checksums
included), and of a plain file of the same size that is synced after writing and dropped from the page cache before
reading. The step is of a small Llama on the CPU, in bf16; medians of steps behind the first. Each step is clipped and
waited for, writing included, so that nothing of the disk's time hides behind forward or backward.
"""

import argparse
import json
import mmap
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from slideformer.data.batches import Batch, collate
from slideformer.data.examples import Example
from slideformer.engine.engine import Engine
from slideformer.engine.random_weights import random_weights
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.sizes import Sizes
from slideformer.storage.disk import CHUNK_BYTES, DiskFile, checksum, padded
from slideformer.units import parse_bytes

BLOCKS, TOKENS = 16, 128
CONFIG = LlamaConfig(
    vocab_size=1024, hidden_size=512, intermediate_size=1536, num_hidden_layers=BLOCKS, num_attention_heads=8,
    num_key_value_heads=8, max_position_embeddings=TOKENS,
)  # fmt: skip
HYPER = AdamWStep(learning_rate=1e-4, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, step=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--record", type=parse_bytes, default=parse_bytes("256MiB"), help="size of a record")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path, help="also write the results there")
    args = parser.parse_args()
    results: dict[str, Any] = {
        "gb_per_second": disk_rates(args.directory, padded(args.record), args.records, args.rounds),
        "checksum_gb_per_second": checksum_rates(padded(args.record), args.rounds),
        "step_seconds": {count: step_seconds(args.directory, count, args.steps) for count in (0, BLOCKS // 2, BLOCKS)},
    }
    text = json.dumps(results, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def disk_rates(directory: Path, record_bytes: int, records: int, rounds: int) -> dict[str, float]:
    """Medians over rounds, each of which measures all four in turn."""
    buffers = [memoryview(mmap.mmap(-1, record_bytes)) for _ in range(4)]
    for buffer in buffers:
        buffer[:] = os.urandom(1 << 20) * (record_bytes >> 20) + bytes(record_bytes % (1 << 20))
    total = records * record_bytes
    file = DiskFile(directory, {str(i): record_bytes for i in range(records)})
    works: dict[str, Callable[[], object]] = {
        "written": lambda: all_records(file.write, records, buffers),
        "read": lambda: all_records(file.read, records, buffers),
    }
    with tempfile.NamedTemporaryFile(dir=directory) as plain:
        works["buffered, written"] = lambda: write_buffered(plain.fileno(), records, buffers[0])
        works["buffered, read"] = lambda: read_buffered(plain.fileno(), records, buffers[0])
        times = [{name: seconds(work) for name, work in works.items()} for _ in range(rounds)]
    direct = float(file.direct)
    file.close()
    return {"direct": direct, **{name: total / 1e9 / statistics.median(t[name] for t in times) for name in works}}


def all_records(move: Callable[[str, memoryview], Any], records: int, buffers: list[memoryview]) -> None:
    """Every record once, with as many under way as there are buffers."""
    under_way: list[Any] = [None] * len(buffers)
    for i in range(records):
        turn = i % len(buffers)
        if under_way[turn] is not None:
            under_way[turn].result()
        under_way[turn] = move(str(i), buffers[turn])
    for future in under_way:
        if future is not None:
            future.result()


def write_buffered(descriptor: int, records: int, data: memoryview) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    for _ in range(records):
        for start in range(0, len(data), CHUNK_BYTES):
            os.write(descriptor, data[start : start + CHUNK_BYTES])
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def read_buffered(descriptor: int, records: int, into: memoryview) -> None:
    for record in range(records):
        for start in range(0, len(into), CHUNK_BYTES):
            os.preadv(descriptor, [into[start : start + CHUNK_BYTES]], record * len(into) + start)


def checksum_rates(record_bytes: int, rounds: int) -> dict[str, float]:
    """Of ours and of CRC-32 over every byte, on one thread."""
    data = memoryview(mmap.mmap(-1, record_bytes))
    data[:] = bytes(record_bytes)
    rates = {}
    for name, work in (("ours", checksum), ("crc32", zlib.crc32)):
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            work(data)
            times.append(time.perf_counter() - started)
        rates[name] = record_bytes / 1e9 / statistics.median(times)
    return rates


def step_seconds(directory: Path, on_disk: int, steps: int) -> float:
    """Median over the steps behind the first, each waited for; clipped, so that no update hides behind backward."""
    decoder = Decoder(CONFIG, torch.device("cpu"))
    sizes = Sizes(2, 2, 1, TOKENS, BLOCKS, 0, head_chunk=TOKENS, disk_blocks=on_disk)
    with Engine(decoder, sizes, torch.bfloat16, offload_dir=directory) as engine:
        engine.load(random_weights(engine, CONFIG, seed=1))
        engine.drain()

        def step() -> None:
            engine.train_step(batch(), HYPER, max_norm=1.0)
            engine.drain()

        return statistics.median([seconds(step) for _ in range(steps + 1)][1:])


def batch() -> Batch:
    ids = torch.randint(
        0, CONFIG.vocab_size, (2, TOKENS), generator=torch.Generator().manual_seed(1), dtype=torch.int32
    )
    return collate([Example(i, row, row) for i, row in enumerate(ids)], pad_id=0)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
