"""A record and its weights are one piece of memory and two records, of which the weights can be read alone."""

import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from slideformer.errors import DiskError
from slideformer.memory.host import HostAllocator
from slideformer.storage.disk import ALIGN_BYTES
from slideformer.storage.record_files import RecordFiles, both, weights_of

REST, WEIGHTS = {"a": 9000, "b": 5000}, {"b": 4100}


@pytest.fixture
def files(tmp_path: Path) -> Iterator[RecordFiles]:
    made = RecordFiles(tmp_path, REST, WEIGHTS)
    yield made
    made.close()


def memory() -> torch.Tensor:
    return HostAllocator(pin=False).empty("record", (RecordFiles.memory_needed(REST, WEIGHTS),), torch.uint8)


def test_memory_and_room(files: RecordFiles, tmp_path: Path):
    assert RecordFiles.memory_needed(REST, WEIGHTS) == 4 * ALIGN_BYTES and RecordFiles.memory_needed({}, {}) == 0
    assert files.weights is not None
    assert [os.fstat(file._file).st_size // ALIGN_BYTES for file in (files.rest, files.weights)] == [3 + 2, 2]
    alone = RecordFiles(tmp_path, REST, {})
    assert alone.weights is None
    alone.close()


def test_a_record_comes_back_whole_and_its_weights_alone(files: RecordFiles):
    written = {name: memory().random_(255) for name in REST}
    for name, data in written.items():
        files.write(name, data.numpy().data).result()
    for name, pages in (("a", 3), ("b", 4), (weights_of("b"), 2)):
        found = memory()
        files.read(name, found.numpy().data).result()
        expected = written[name[-1]]
        assert torch.equal(found[: pages * ALIGN_BYTES], expected[: pages * ALIGN_BYTES])
        assert not found[pages * ALIGN_BYTES :].any()


@pytest.mark.parametrize("damaged", ["rest", "weights"])
def test_damage_of_either_part_is_told(files: RecordFiles, damaged: str):
    files.write("b", memory().numpy().data).result()
    getattr(files, damaged)._sums["b"] ^= 1
    what = {"rest": "state", "weights": "weights"}[damaged]
    with pytest.raises(DiskError, match=f"the {what} of b in .* is not what was written"):
        files.read("b", memory().numpy().data).result()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("failing", [(), (0,), (1,), (0, 1)])
def test_two_are_done_when_both_are(order: tuple[int, int], failing: tuple[int, ...]):
    parts: list[Future[None]] = [Future(), Future()]
    done = both(*parts)
    for k in order:
        assert not done.done()
        parts[k].set_exception(ValueError(str(k))) if k in failing else parts[k].set_result(None)
    assert done.done() and str(done.exception() or "") == "".join(map(str, failing[:1]))
