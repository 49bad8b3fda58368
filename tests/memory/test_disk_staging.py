"""What is expected is read ahead in order; what is asked for comes all the same; nothing waits without need."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from slideformer.errors import DiskError
from slideformer.lanes.lanes import PASSED
from slideformer.memory.disk_staging import DiskStaging
from slideformer.memory.host import HostAllocator
from slideformer.storage.disk import DiskFile

BYTES, BUFFERS = 3 * 4096, 3
RECORDS = [f"block {i}" for i in range(8)]


class LateFence:
    """Not done until somebody waits for it."""

    def __init__(self) -> None:
        self.passed = False

    def done(self) -> bool:
        return self.passed

    def wait(self) -> None:
        self.passed = True


class Subject:
    """A staging, its file, and what it read, in order."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch):
        self.file = DiskFile(directory, dict.fromkeys(RECORDS, BYTES), "weights")
        for k, record in enumerate(RECORDS):
            page = torch.full((BYTES,), k, dtype=torch.uint8)
            aligned = HostAllocator(pin=False).empty("page", (BYTES,), torch.uint8)
            self.file.write(record, aligned.copy_(page).numpy().data).result()
        self.stale: set[str] = set()
        self.allocator = HostAllocator(pin=False)
        sizes = dict.fromkeys(RECORDS, BYTES)
        self.staging = DiskStaging(
            self.file, sizes, self.allocator, BUFFERS, "staging", lambda record: record not in self.stale
        )  # fmt: skip
        self.read: list[str] = []
        self.moves: list[Any] = []
        monkeypatch.setattr(self.file, "read", self._noted(self.file.read))

    def _noted(self, read: Any) -> Any:
        def noted(record: str, into: memoryview) -> Any:
            self.read.append(record)
            self.moves.append(read(record, into))
            return self.moves[-1]

        return noted

    def use(self, record: str, fence: Any = PASSED) -> int:
        """Arrives, is copied, is gone; returns what it held."""
        memory = self.staging.arrive(record)
        assert memory is self.staging.memory_of(record)
        (value,) = set(memory.tolist())
        self.staging.sent(record, fence)
        return value


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    made = Subject(tmp_path, monkeypatch)
    yield made
    made.file.close()


def test_bytes(subject: Subject):
    assert subject.allocator.allocated_bytes == {"staging": BUFFERS * BYTES}
    assert DiskStaging.bytes_needed({"a": 5, "b": 4097}, 2) == 4 * 4096


def test_what_is_expected_is_read_ahead_and_in_order(subject: Subject):
    subject.staging.expect(RECORDS)
    assert subject.read == RECORDS[:BUFFERS]
    for k, record in enumerate(RECORDS):
        assert subject.use(record) == k
        assert subject.read[: k + 1 + BUFFERS] == RECORDS[: k + 1 + BUFFERS]
    assert subject.read == RECORDS


def test_what_was_not_expected_comes_all_the_same(subject: Subject):
    assert [subject.use(record) for record in reversed(RECORDS)] == list(reversed(range(8)))
    subject.staging.expect(RECORDS[:5])
    assert subject.use(RECORDS[7]) == 7  # of those that are read ahead, the last gives way
    assert [subject.use(record) for record in RECORDS[:5]] == list(range(5))


def test_what_was_not_expected_keeps_its_place_until_it_is_sent(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    read = subject.file.read

    def at_once(record: str, into: memoryview) -> Any:
        done = read(record, into)
        done.result()
        return done

    monkeypatch.setattr(subject.file, "read", at_once)
    subject.staging.expect(RECORDS[:5])
    memory = subject.staging.arrive(RECORDS[7])
    subject.staging.ready(RECORDS[0])
    assert subject.staging.memory_of(RECORDS[7]) is memory and set(memory.tolist()) == {7}
    subject.staging.sent(RECORDS[7], PASSED)
    assert [subject.use(record) for record in RECORDS[:5]] == list(range(5))


def test_a_record_that_will_change_is_not_read_and_none_takes_its_place(subject: Subject):
    subject.stale = {RECORDS[0]}
    subject.staging.expect(RECORDS)
    assert subject.read == RECORDS[1:BUFFERS] and not subject.staging.ready(RECORDS[0])
    subject.stale = set()
    assert not subject.staging.ready("not asked for") and subject.read == [*RECORDS[1:BUFFERS], RECORDS[0]]
    assert [subject.use(record) for record in RECORDS] == list(range(8))


def test_what_is_used_again_soon_stays(subject: Subject):
    subject.staging.expect([*RECORDS[:4], RECORDS[3], RECORDS[2]])
    for k in (0, 1, 2, 3, 3, 2):
        assert subject.use(RECORDS[k]) == k
    assert subject.read == RECORDS[:4]


def test_what_is_skipped_is_not_read(subject: Subject):
    subject.staging.expect([RECORDS[0], *RECORDS[3:]])
    for record in RECORDS[3:6]:
        subject.staging.skip(record)
    for move in subject.moves:
        move.result()
    subject.use(RECORDS[0])
    assert subject.read == [RECORDS[0], RECORDS[3], RECORDS[4], RECORDS[6], RECORDS[7]]  # two were on their way


def test_what_is_forgotten_is_read_again(subject: Subject):
    subject.use(RECORDS[0])
    subject.staging.forget(RECORDS[0])
    subject.staging.forget(RECORDS[1])  # is not there
    assert subject.use(RECORDS[0]) == 0 and subject.read == [RECORDS[0]] * 2


def test_a_buffer_that_is_being_copied_is_not_overwritten(subject: Subject):
    fences = [LateFence() for _ in range(BUFFERS)]
    subject.staging.expect(RECORDS)
    for record, fence in zip(RECORDS, fences, strict=False):
        subject.use(record, fence)
    assert subject.read == RECORDS[:BUFFERS] and not any(fence.passed for fence in fences)
    fences[1].passed = True
    assert not subject.staging.ready(RECORDS[5]) and subject.read == RECORDS[: BUFFERS + 1]
    assert subject.use(RECORDS[4]) == 4  # none is free: waits for the copy that began first
    assert [fence.passed for fence in fences] == [True, True, False]


def test_a_failed_read_is_told_when_the_record_is_asked_for(subject: Subject):
    subject.file._sums[RECORDS[1]] ^= 1
    subject.staging.expect(RECORDS)
    assert subject.use(RECORDS[0]) == 0
    with pytest.raises(DiskError, match="the weights of block 1 in .* is not what was written"):
        subject.staging.arrive(RECORDS[1])
    with pytest.raises(DiskError, match="block 1"):
        subject.staging.ready(RECORDS[1])


# ---- from the device


def fill(subject: Subject, record: str, value: int, fence: Any = PASSED, size: int = BYTES) -> None:
    place = subject.staging.place(record, size)
    place[:size].fill_(value)
    subject.staging.filled(record, fence)


def test_what_comes_from_the_device_goes_to_the_disk_and_back(subject: Subject):
    for k, record in enumerate(RECORDS):
        fill(subject, record, 100 + k)
    assert subject.read == []
    order = RECORDS[::-1]
    subject.staging.expect(order)
    assert [subject.use(record) for record in order] == [100 + k for k in reversed(range(8))]
    assert subject.read == order[BUFFERS:]  # the last ones were still here


def test_it_is_there_before_it_is_written(subject: Subject):
    late = LateFence()
    fill(subject, RECORDS[0], 7, late)
    subject.staging.expect(RECORDS[:1])
    assert subject.staging.ready(RECORDS[0]) and subject.use(RECORDS[0], late) == 7 and not late.passed


def test_where_all_places_are_taken_the_oldest_is_waited_for_and_written(subject: Subject):
    fences = [LateFence() for _ in range(BUFFERS + 1)]
    for k, fence in enumerate(fences):
        fill(subject, RECORDS[k], k + 50, fence)
    assert [fence.passed for fence in fences] == [True, False, False, False]
    assert subject.use(RECORDS[0]) == 50 and subject.read == RECORDS[:1]


def test_a_short_record_is_written_and_read_as_such(subject: Subject):
    for size in (100, 2 * 4096, BYTES):
        for record in RECORDS[: BUFFERS + 1]:
            fill(subject, record, size % 251, size=size)
        memory = subject.staging.arrive(RECORDS[0])
        assert set(memory[:size].tolist()) == {size % 251}
        subject.staging.sent(RECORDS[0], PASSED)


def test_a_failed_write_is_told_also_if_it_is_not_read_again(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    reached = threading.Event()

    def fail(record: str, data: memoryview) -> None:
        reached.set()
        raise DiskError(f"cannot write {record}")

    monkeypatch.setattr(subject.file, "_write", fail)
    fill(subject, RECORDS[0], 1)
    assert reached.wait(10)
    subject.file.close()  # the write is over, and its error known
    with pytest.raises(DiskError, match="cannot write block 0"):
        subject.staging.ready(RECORDS[0])
