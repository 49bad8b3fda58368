import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_up_units import tensors_of, unit_in_memory

from slideformer.errors import CheckpointError
from slideformer.layout import FlatLayout
from slideformer.storage import checkpoint
from slideformer.storage.checkpoint import UnitState, find_checkpoints, keep_newest, restore, verify, write_checkpoint
from slideformer.storage.manifest import Data, RunFacts, read_manifest

Units = dict[str, UnitState]
MakeUnits = Callable[[int], Units]
RUN = RunFacts(
    steps=9, dtype="fp32", micro_batch_size=2, data=Data(records=3, sha256="0" * 64), versions={}, config={"seed": 1}
)  # fmt: skip


def same(one: Units, other: Units) -> bool:
    pairs = [zip(tensors_of(one[unit]).values(), tensors_of(other[unit]).values(), strict=True) for unit in one]
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for pair in pairs for a, b in pair)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_every_bit_comes_back(tmp_path: Path, make_units: MakeUnits):
    units, target = make_units(1), make_units(2)
    path = write_checkpoint(tmp_path, 5, RUN, units)
    assert path == tmp_path / "checkpoint-5" and names(tmp_path) == ["checkpoint-5"]
    manifest = read_manifest(path)
    assert (manifest.step, manifest.run) == (5, RUN)
    restore(path, manifest, target)
    assert same(units, target) and verify(path) == manifest


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path, make_units: MakeUnits):
    write_checkpoint(tmp_path, 5, RUN, make_units(1))
    path = write_checkpoint(tmp_path, 5, RUN, make_units(2))
    restore(path, read_manifest(path), target := make_units(3))
    assert same(target, make_units(2)) and names(tmp_path) == ["checkpoint-5"]


def test_the_newest_comes_first_and_others_are_no_checkpoints(tmp_path: Path, make_units: MakeUnits):
    for step in (2, 10, 9):
        write_checkpoint(tmp_path, step, RUN, make_units(1))
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / ".checkpoint-11.partial").mkdir()
    (tmp_path / "checkpoint-12").touch()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9", "checkpoint-2"]
    keep_newest(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-12", "checkpoint-9", "checkpoint-x"]
    assert find_checkpoints(tmp_path / "nowhere") == []


def test_each_flipped_bit_is_noticed(tmp_path: Path, make_units: MakeUnits):
    path = write_checkpoint(tmp_path, 1, RUN, make_units(1))
    for file in sorted(path.iterdir()):
        content = bytearray(file.read_bytes())
        for place in range(0, len(content), max(1, len(content) // 40)):
            content[place] ^= 4
            file.write_bytes(content)
            with pytest.raises(CheckpointError, match=file.name.replace(".", r"\.")):
                verify(path)
            content[place] ^= 4
        file.write_bytes(content)
    verify(path)


def test_a_missing_file_is_named(tmp_path: Path, make_units: MakeUnits):
    path = write_checkpoint(tmp_path, 1, RUN, make_units(1))
    (path / "00001-model.layers.0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*00001-model.layers.0.safetensors: No such file"):
        restore(path, read_manifest(path), make_units(2))


def test_a_checkpoint_of_another_model(tmp_path: Path, make_units: MakeUnits):
    path = write_checkpoint(tmp_path, 1, RUN, make_units(1))
    fewer, other = make_units(2), make_units(2)
    del fewer["shell"]
    other["shell"] = unit_in_memory(FlatLayout({"bias": (3,)}), checkpoint.empty_planes(128, 128))
    with pytest.raises(CheckpointError, match="of another model; units that only one of them has: shell"):
        restore(path, read_manifest(path), fewer)
    with pytest.raises(CheckpointError, match="shell has other shapes"):
        restore(path, read_manifest(path), other)


def test_what_is_written_beside_it_is_part_of_the_same_rename(tmp_path: Path, make_units: MakeUnits):
    path = write_checkpoint(tmp_path, 1, RUN, make_units(1), lambda directory: (directory / "model").mkdir())
    assert (path / "model").is_dir()


def test_a_failed_save_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, make_units: MakeUnits, monkeypatch: pytest.MonkeyPatch
):
    write_checkpoint(tmp_path, 1, RUN, make_units(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_tensors", "write_manifest", "sync_directory"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, full)
            with pytest.raises(CheckpointError, match="cannot save .*checkpoint-2: No space left on device"):
                write_checkpoint(tmp_path, 2, RUN, make_units(2))
        assert names(tmp_path) == ["checkpoint-1"]
    restore(tmp_path / "checkpoint-1", read_manifest(tmp_path / "checkpoint-1"), target := make_units(3))
    assert same(target, make_units(1))


def test_the_manifest_is_readable_by_anyone(tmp_path: Path, make_units: MakeUnits):
    path = write_checkpoint(tmp_path, 1, RUN, make_units(1))
    manifest = json.loads((path / "manifest.json").read_text())["manifest"]
    assert manifest["units"]["model.layers.0"]["parameters"]["norm"] == {"start": 128, "shape": [8]}
