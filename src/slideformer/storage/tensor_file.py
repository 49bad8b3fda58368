"""One safetensors file, written from and read into memory that is already there, hashed on the way.

Nothing is copied or memory-mapped: a file that shrinks while it is read is an error, not a SIGBUS.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from slideformer.errors import CheckpointError
from slideformer.units import MIB

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK_BYTES = 16 * MIB  # hashed and written at once
UNSYNCED_CHUNKS = 4  # then they are synced, and leave the page cache
MOST_HEADER_BYTES = 100 * MIB  # as in the safetensors library
Entry = tuple[str, torch.dtype, tuple[int, ...], int]  # name, dtype, shape, first byte of the data section


@dataclass(frozen=True)
class Digest:
    """What a whole file came to."""

    size_bytes: int
    sha256: str


def header(entries: list[Entry], metadata: Mapping[str, str]) -> bytes:
    """8 bytes of length, then JSON padded with spaces so that the data section starts at a multiple of 8."""
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, dtype, shape, start in entries:
        offsets = [start, start + prod(shape) * dtype.itemsize]
        described[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Digest:
    """Write contiguous CPU tensors to a new file, in their order, and sync it.

    Little of it is in the page cache at any time: a state's size of it would push out what others need, and make
    those wait who need memory.
    """
    entries, start = [], 0
    for name, tensor in tensors.items():
        entries.append((name, tensor.dtype, tuple(tensor.shape), start))
        start += tensor.nbytes
    head, hashed = header(entries, {"format": "pt"}), hashlib.sha256()
    with path.open("xb") as file:
        for k, piece in enumerate([head, *(chunk for tensor in tensors.values() for chunk in _chunks(tensor))], 1):
            hashed.update(piece)
            file.write(piece)
            if k % UNSYNCED_CHUNKS == 0:
                _leave_cache(file)
        _leave_cache(file)
    return Digest(len(head) + start, hashed.hexdigest())


def read_tensors(path: Path, into: Mapping[str, Tensor]) -> Digest:
    """Fill contiguous CPU tensors from a file that holds exactly these, in this order.

    Raises:
        CheckpointError: the file is not readable, damaged, or holds other names, shapes or dtypes. What `into` holds
            is then neither the old nor the new.
    """
    try:
        with _open(path) as file:
            head = _read_head(path, file)
            _check_same(path, parse_header(head[8:], str(path)), into)
            hashed = hashlib.sha256(head)
            for piece in (chunk for tensor in into.values() for chunk in _chunks(tensor)):
                if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]  # a buffered file has it
                    raise CheckpointError(f"{path} is cut short")
                hashed.update(piece)
            if file.read(1):
                raise CheckpointError(f"{path} is longer than its header says")
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    return Digest(len(head) + sum(tensor.nbytes for tensor in into.values()), hashed.hexdigest())


def parse_header(text: bytes, source: str) -> list[Entry]:
    """The entries of a safetensors header, in the order of their data.

    Raises:
        CheckpointError: it is not JSON, or names an unknown dtype, a shape or offsets that do not go together.
    """
    try:
        described = json.loads(text)
        described.pop("__metadata__", None)
        entries = [_entry(name, value) for name, value in described.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{source} has no safetensors header: {error!r}") from error
    entries.sort(key=lambda entry: entry[3])
    end = 0
    for name, dtype, shape, start in entries:
        if start != end:
            raise CheckpointError(f"{source}: {name!r} starts at byte {start}, expected {end}")
        end = start + prod(shape) * dtype.itemsize
    return entries


def _entry(name: str, value: Any) -> Entry:
    shape, (start, stop) = tuple(value["shape"]), value["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, start, stop)):
        raise ValueError(f"{name!r} has a size that is not a whole number")
    dtype = DTYPES[value["dtype"]]
    if stop - start != prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} has offsets that do not match its shape")
    return name, dtype, shape, start


def _open(path: Path) -> BinaryIO:
    """Not through a link, which could lead out of the checkpoint."""
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def _read_head(path: Path, file: BinaryIO) -> bytes:
    length = int.from_bytes(prefix := file.read(8), "little")
    if len(prefix) < 8 or length > MOST_HEADER_BYTES:
        raise CheckpointError(f"{path} has no safetensors header")
    text = file.read(length)
    if len(text) < length:
        raise CheckpointError(f"{path} is cut short")
    return prefix + text


def _leave_cache(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())  # what is not on the disk yet stays in the cache
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _check_same(path: Path, entries: list[Entry], into: Mapping[str, Tensor]) -> None:
    found = [(name, dtype, shape) for name, dtype, shape, _ in entries]
    wanted = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in into.items()]
    if found != wanted:
        raise CheckpointError(f"{path} holds {found}, expected {wanted}")


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    if tensor.numel():
        memory = tensor.view(torch.uint8).reshape(-1).numpy().data
        for start in range(0, len(memory), CHUNK_BYTES):
            yield memory[start : start + CHUNK_BYTES]
