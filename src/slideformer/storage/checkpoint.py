"""Checkpoints: every unit's planes and moments, written beside the earlier ones and published by one rename.

A directory `checkpoint-N` is therefore always whole: what a kill leaves behind has a hidden name. It can still be
damaged later, by a disk or by hand, so all that is read is compared with the manifest.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from slideformer.errors import CheckpointError
from slideformer.layout import FlatLayout
from slideformer.storage.manifest import Manifest, RunFacts, UnitFile, places, read_manifest, shapes_of, write_manifest
from slideformer.storage.tensor_file import Digest, read_tensors, write_tensors

THREADS = 4  # files at once: one core hashes about 2 GB/s, less than a fast disk takes
NAME = re.compile(r"checkpoint-([1-9][0-9]{0,17})")
MOMENT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HIDDEN = ".checkpoint-"  # what is not yet, or no longer, a checkpoint


class HasTensors(Protocol):
    def tensors(self) -> Mapping[str, Tensor]:
        """Everything durable by name, in host memory, to be written from and read into in place."""
        ...


@dataclass(frozen=True)
class UnitState:
    """A unit as a checkpoint sees it.

    Attributes:
        opened: brings the unit's tensors to host memory, if they are not there, for as long as the context lasts; its
            `change` says whether what is changed there is to be kept. Several units may be open at once.
    """

    layout: FlatLayout
    opened: Callable[[bool], AbstractContextManager[HasTensors]]
    missed: Counter[str] = field(default_factory=Counter)


def write_checkpoint(
    directory: Path,
    step: int,
    run: RunFacts,
    units: Mapping[str, UnitState],
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Write `directory`/checkpoint-`step` and return it; takes no memory beyond a few buffers.

    Args:
        units: must not change meanwhile.
        beside: writes further files into the checkpoint before it is published; they are not verified later.

    Raises:
        CheckpointError: the disk is full or fails; what was saved before is untouched.
    """
    target, partial = directory / f"checkpoint-{step}", directory / f"{HIDDEN}{step}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        manifest = Manifest(step=step, run=run, units=_write_units(partial, units))
        write_manifest(partial, manifest)
        if beside is not None:
            beside(partial)
        sync_directory(partial)
        _hide(target)  # of the same step, from a run that was continued from further back
        os.rename(partial, target)
        sync_directory(directory)
    except OSError as error:
        raise CheckpointError(
            f"cannot save {target}: {error.strerror}", "free space in output_dir; earlier checkpoints are whole"
        ) from error
    finally:
        remove_hidden(directory)
    return target


def find_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a directory, newest first; none of them is opened."""
    if not directory.is_dir():
        return []
    named = {int(match[1]): path for path in directory.iterdir() if (match := NAME.fullmatch(path.name))}
    return [named[step] for step in sorted(named, reverse=True) if named[step].is_dir()]


def restore(path: Path, manifest: Manifest, units: Mapping[str, UnitState]) -> None:
    """Fill `units` from a checkpoint, verifying every byte on the way.

    Raises:
        CheckpointError: it is of another model, or a file is missing or damaged; `units` then hold no usable state.
    """
    check_layouts(path, manifest, units)

    def read(unit: str) -> None:
        described = manifest.units[unit]
        with units[unit].opened(True) as state:
            found = read_tensors(path / described.file, state.tensors())
        if found != Digest(described.size_bytes, described.sha256):
            raise CheckpointError(f"{path / described.file} was changed after it was written: its checksum is another")
        units[unit].missed.clear()
        units[unit].missed.update(described.missed)

    with ThreadPoolExecutor(THREADS, "restore") as pool:
        list(pool.map(read, units))


def check_layouts(path: Path, manifest: Manifest, units: Mapping[str, UnitState]) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        CheckpointError: it has other units, or other parameters in one.
    """
    if other := sorted(manifest.units.keys() ^ units.keys()):
        raise CheckpointError(
            f"{path} is of another model; units that only one of them has: {', '.join(other[:3])}",
            "resume with the model that was trained",
        )
    for unit, state in units.items():
        described = manifest.units[unit]
        if {name: place.shape for name, place in described.parameters.items()} != shapes_of(state.layout):
            raise CheckpointError(
                f"{path}: {unit} has other shapes than in this model", "resume with the model that was trained"
            )
        if described.trained_numel != state.layout.trained_numel or described.parameters != places(state.layout):
            raise CheckpointError(
                f"{path}: other parameters of {unit} were trained", "set trainable and frozen as they were"
            )


def verify(path: Path) -> Manifest:
    """Read a whole checkpoint, one unit at a time, and compare it with its manifest.

    Raises:
        CheckpointError: something is missing or damaged.
    """
    manifest = read_manifest(path)
    for described in manifest.units.values():
        moments = MOMENT_DTYPES[manifest.run.optimizer_state]
        found = read_tensors(path / described.file, empty_planes(described.numel, described.trained_numel, moments))
        if found != Digest(described.size_bytes, described.sha256):
            raise CheckpointError(f"{path / described.file} was changed after it was written: its checksum is another")
    return manifest


def empty_planes(numel: int, trained_numel: int, moment_dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of the names and dtypes that a unit's file holds, in its order."""
    masters = {"hi": torch.bfloat16, "lo": torch.int16}
    moments = {name: torch.empty(trained_numel, dtype=moment_dtype) for name in ("exp_avg", "exp_avg_sq")}
    return {**{name: torch.empty(numel, dtype=dtype) for name, dtype in masters.items()}, **moments}


def keep_newest(directory: Path, limit: int) -> None:
    """Remove all but the `limit` newest checkpoints; each is hidden first, so that a kill leaves no half one."""
    for path in find_checkpoints(directory)[limit:]:
        _hide(path)
    remove_hidden(directory)


def remove_hidden(directory: Path) -> None:
    """Remove what a kill, or a failure, left of checkpoints that were being written or removed."""
    for path in directory.glob(f"{HIDDEN}*"):
        shutil.rmtree(path, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hide(path: Path) -> None:
    if path.exists():
        os.rename(path, path.with_name(f".{path.name}.removed"))


def _write_units(directory: Path, units: Mapping[str, UnitState]) -> dict[str, UnitFile]:
    def write(numbered: tuple[int, str]) -> UnitFile:
        number, unit = numbered
        state, file = units[unit], f"{number:05d}-{_plain(unit)}.safetensors"
        with state.opened(False) as opened:
            digest = write_tensors(directory / file, opened.tensors())
        return UnitFile(
            file=file,
            size_bytes=digest.size_bytes,
            sha256=digest.sha256,
            numel=state.layout.numel,
            trained_numel=state.layout.trained_numel,
            missed=dict(state.missed),
            parameters=places(state.layout),
        )

    with ThreadPoolExecutor(THREADS, "checkpoint") as pool:
        return dict(zip(units, pool.map(write, enumerate(units)), strict=True))


def _plain(unit: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", unit)[:100]
