"""Records come back bit for bit or with an error that names them; nothing is left behind, and nothing waits forever."""

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slideformer.errors import DiskError
from slideformer.storage import disk
from slideformer.storage.disk import ALIGN_BYTES, DiskFile, checksum, padded

SIZES = {"a": 3 * ALIGN_BYTES, "b": 5, "c": 2 * ALIGN_BYTES + 1}


def memory(size_bytes: int, fill: bytes = b"") -> memoryview:
    view = memoryview(mmap.mmap(-1, padded(size_bytes)))
    view[:] = (fill * len(view))[: len(view)] if fill else bytes(len(view))
    return view


@pytest.fixture
def file(tmp_path: Path) -> Iterator[DiskFile]:
    found = DiskFile(tmp_path, SIZES)
    yield found
    found.close()


@pytest.mark.parametrize("chunk", [ALIGN_BYTES, 2 * ALIGN_BYTES, disk.CHUNK_BYTES])
def test_every_record_comes_back(chunk: int, file: DiskFile, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk, "CHUNK_BYTES", chunk)
    written = {name: memory(size, name.encode() + b"-1234") for name, size in SIZES.items()}
    for name, data in written.items():
        file.write(name, data).result()
    for name, data in reversed(written.items()):
        into = memory(SIZES[name])
        file.read(name, into).result()
        assert into == data


def test_a_record_never_written_is_zero(file: DiskFile):
    into = memory(SIZES["a"], b"x")
    file.read("a", into).result()
    assert bytes(into) == bytes(len(into))


def test_a_read_asked_for_after_a_write_reads_what_was_written(file: DiskFile, monkeypatch: pytest.MonkeyPatch):
    release, write = threading.Event(), os.pwritev

    def late(*args: Any) -> int:
        assert release.wait(10)
        return write(*args)

    monkeypatch.setattr(os, "pwritev", late)
    data, into = memory(SIZES["a"], b"new"), memory(SIZES["a"])
    file.write("a", data)
    read = file.read("a", into)
    release.set()
    read.result(timeout=10)
    assert into == data


def test_without_the_page_cache_where_that_is_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(disk, "_can_read", lambda descriptor: calls.append(descriptor) or False)
    file = DiskFile(tmp_path, SIZES)
    assert not file.direct and len(calls) <= 1
    data, into = memory(SIZES["c"], b"buffered"), memory(SIZES["c"])
    file.write("c", data).result()
    file.read("c", into).result()
    assert into == data
    file.close()


def test_nothing_is_left_behind(tmp_path: Path):
    file = DiskFile(tmp_path, SIZES)
    assert list(tmp_path.iterdir()) == []
    file.write("a", memory(SIZES["a"], b"1")).result()
    tmp_path.rmdir()  # not even the directory is needed any more
    file.read("a", memory(SIZES["a"])).result()
    file.close()


def test_all_space_is_taken_at_once(file: DiskFile):
    needed = DiskFile.bytes_needed(SIZES)
    assert needed == (3 + 1 + 3) * ALIGN_BYTES
    assert os.fstat(file._file).st_size == needed and os.fstat(file._file).st_blocks * 512 >= needed


def test_a_full_disk_is_known_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DiskError, match=r"cannot take 28.0 KiB in .*: No space left(.|\n)*lower budget.disk"):
        DiskFile(tmp_path, SIZES)
    assert len(os.listdir("/proc/self/fd")) == before and list(tmp_path.iterdir()) == []


def test_a_directory_that_is_gone(tmp_path: Path):
    with pytest.raises(DiskError, match=r"cannot make a file in .*gone: No such file(.|\n)*offload_dir"):
        DiskFile(tmp_path / "gone", SIZES)


def failing(number: int) -> Callable[..., int]:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENODEV])
def test_a_failed_write_names_the_record_and_is_not_read_over(
    number: int, file: DiskFile, monkeypatch: pytest.MonkeyPatch
):
    file.write("a", memory(SIZES["a"], b"old")).result()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failing(number))
        with pytest.raises(DiskError, match=rf"cannot write the state of a in .*: {os.strerror(number)}"):
            file.write("a", memory(SIZES["a"], b"new")).result()
    with pytest.raises(DiskError, match="cannot write the state of a"):
        file.read("a", memory(SIZES["a"])).result()
    file.read("b", memory(SIZES["b"])).result()  # the others are as they were


def test_a_failed_read_names_the_record(file: DiskFile, monkeypatch: pytest.MonkeyPatch):
    file.write("c", memory(SIZES["c"], b"old")).result()
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    with pytest.raises(DiskError, match="cannot read the state of c in .*: Input/output error"):
        file.read("c", memory(SIZES["c"])).result()


@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_call_that_moves_less_is_asked_for_the_rest(verb: str, file: DiskFile, monkeypatch: pytest.MonkeyPatch):
    name = {"read": "preadv", "write": "pwritev"}[verb]
    call = getattr(os, name)

    def less(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return call(descriptor, [buffers[0][:ALIGN_BYTES]], offset)

    monkeypatch.setattr(os, name, less)
    data, into = memory(SIZES["a"], b"in pieces"), memory(SIZES["a"])
    file.write("a", data).result()
    file.read("a", into).result()
    assert into == data


@pytest.mark.parametrize("moved", [0, 100])
def test_a_call_that_moves_too_little_to_go_on_is_an_error(moved: int, file: DiskFile, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "pwritev", lambda *_: moved)
    with pytest.raises(DiskError, match=f"cannot write the state of a in .*: only {moved} of 12,288 bytes"):
        file.write("a", memory(SIZES["a"], b"1")).result(timeout=10)


DAMAGE: dict[str, Callable[[bytearray], None]] = {
    "a flipped bit": lambda data: data.__setitem__(5000, data[5000] ^ 4),
    "a sector of zeros": lambda data: data.__setitem__(slice(4096, 8192), bytes(4096)),
    "two sectors in each other's place": lambda data: data.__setitem__(slice(None), data[4096:8192] + data[:4096]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_record_is_refused(kind: str, file: DiskFile):
    page = bytes(range(256)) * 16
    data = memory(SIZES["c"])
    data[:8192] = page + page[::-1]
    file.write("c", data).result()
    start, damaged = file._starts["c"], memory(8192)
    os.preadv(file._file, [damaged], start)
    changed = bytearray(damaged)
    DAMAGE[kind](changed)
    damaged[:] = changed
    os.pwritev(file._file, [damaged], start)
    with pytest.raises(DiskError, match="the state of c in .* is not what was written(.|\n)*last checkpoint"):
        file.read("c", memory(SIZES["c"])).result()


def test_a_stale_record_is_refused(file: DiskFile, monkeypatch: pytest.MonkeyPatch):
    file.write("a", memory(SIZES["a"], b"old")).result()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", lambda descriptor, buffers, offset: len(buffers[0]))  # a disk that lies
        file.write("a", memory(SIZES["a"], b"new")).result()
    with pytest.raises(DiskError, match="is not what was written"):
        file.read("a", memory(SIZES["a"])).result()


def test_the_checksum_reads_every_bit():
    data = memory(2 * ALIGN_BYTES, b"some text")
    before = checksum(data)
    for place in range(0, len(data), 61):
        data[place] ^= 1 << place % 8
        assert checksum(data) != before
        data[place] ^= 1 << place % 8
    assert checksum(data) == before
