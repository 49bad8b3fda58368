"""Weights out: a model's parameters, one group (a layer) at a time -> a Hugging Face model directory.

transformers' reversed conversions give the published names. They run first on the meta device over the whole model, so
every tensor's file and offset is known before the first value comes: each group is written straight to its place,
whatever the order, and no shard is ever held in memory.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from slideformer.errors import WeightsError
from slideformer.models.stream_in import persistent_buffers
from slideformer.models.weight_files import INDEX_FILE, SINGLE_FILE, few
from slideformer.storage.tensor_file import header as safetensors_header
from slideformer.units import GIB, MIB

INCOMING = ".incoming"  # inside the output directory, so that a rename is enough to publish
CHUNK_ELEMENTS = 16 * MIB  # converted and written at once
COMPANIONS = (
    "generation_config.json", "token*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "chat_template*", "*.model", "*.tiktoken", "*.py", "LICENSE*",
)  # fmt: skip


def stream_out(
    out_dir: Path,
    model: Any,
    config: Any,
    groups: Iterable[tuple[Any, Mapping[str, Tensor]]],
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = 4 * GIB,
    tokenizer_from: Path | None = None,
) -> None:
    """Write a directory that `AutoModelForCausalLM.from_pretrained` loads: weights, config, tokenizer.

    Everything is written and synced in a hidden subdirectory, then renamed into place with one last rename that decides
    which weights count; a failure or a kill at any moment leaves a model that was there before as it was. Other files
    in `out_dir` are left alone.

    Args:
        out_dir: created if needed.
        model: the `PreTrainedModel`; only its names, shapes and persistent buffers are used.
        config: its configuration, saved with `dtype` and the model's class.
        groups: (key, parameter name -> tensor of any float dtype and device); of tied names, either or both.
        dtype: of the saved parameters, but for those that transformers always keeps in fp32.
        max_shard_bytes: a larger model is split into several files with an index.
        tokenizer_from: directory from which tokenizer, chat template and generation settings are copied.

    Raises:
        WeightsError: the groups hold an unknown parameter, one of another shape, or lack one.
    """
    incoming = out_dir / INCOMING
    shutil.rmtree(incoming, ignore_errors=True)  # left by a run that was killed
    incoming.mkdir(parents=True)
    try:
        shards = _plan_shards(_published(model, dtype), max_shard_bytes, out_dir)
        _write_weights(incoming, shards, model, groups)
        _write_config(incoming, model, config, dtype)
        if tokenizer_from is not None:
            _copy_companions(tokenizer_from, incoming)
        _publish(incoming, out_dir)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: `nbytes` at `start` of its shard's data section."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One safetensors file to be."""

    file_name: str
    places: list[Place]

    @property
    def nbytes(self) -> int:
        return sum(place.nbytes for place in self.places)

    def header(self) -> bytes:
        return safetensors_header([(p.name, p.dtype, p.shape, p.start) for p in self.places], {"format": "pt"})


def _published(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Published name -> meta tensor of the shape and dtype to be saved, for the whole model."""
    fp32_patterns = [pattern.replace("*", ".*") for pattern in model._get_dtype_plan(dtype)]
    tied = model.all_tied_weights_keys
    tensors = {}
    for name, parameter in model.named_parameters():
        if name not in tied:
            keep_fp32 = any(re.search(pattern, name) for pattern in fp32_patterns)
            tensors[name] = torch.empty(parameter.shape, dtype=torch.float32 if keep_fp32 else dtype, device="meta")
    tensors |= {name: buffer.to("meta") for name, buffer in persistent_buffers(model).items()}
    return revert_weight_conversion(model, tensors)


def _plan_shards(tensors: Mapping[str, Tensor], max_shard_bytes: int, out_dir: Path) -> list[Shard]:
    """Tensors in order, into as few files as `max_shard_bytes` allows."""
    contents: list[list[Place]] = [[]]
    start = 0
    # wider dtypes first, so that every tensor is aligned to its own elements
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        place = Place(name, tuple(tensor.shape), tensor.dtype, start)
        if contents[-1] and start + place.nbytes > max_shard_bytes:
            contents.append([])
            place = Place(name, place.shape, place.dtype, 0)
        contents[-1].append(place)
        start = place.start + place.nbytes
    names = [SINGLE_FILE] if len(contents) == 1 else _shard_names(len(contents), out_dir)
    return [Shard(name, places) for name, places in zip(names, contents, strict=True)]


def _shard_names(count: int, out_dir: Path) -> list[str]:
    """The usual names, numbered anew where an earlier model's shards have them: those stay valid until the end."""
    stem, generation = "model", 1
    while True:
        names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        if not any((out_dir / name).exists() for name in names):
            return names
        generation += 1
        stem = f"model-{generation}"


def _write_weights(
    directory: Path, shards: list[Shard], model: Any, groups: Iterable[tuple[Any, Mapping[str, Tensor]]]
) -> None:
    places = {place.name: (shard, place) for shard in shards for place in shard.places}
    for shard in shards:
        with open(directory / shard.file_name, "wb") as file:
            header = shard.header()
            file.write(header)
            file.truncate(len(header) + shard.nbytes)
    for name, tensor in _published_tensors(model, groups):
        if name not in places:
            raise WeightsError(f"{name} is not a parameter of {type(model).__name__}, or was given twice")
        shard, place = places.pop(name)
        _write_tensor(directory / shard.file_name, len(shard.header()), place, tensor)
    if places:
        raise WeightsError(f"{len(places)} parameters were not given: {few(list(places))}")
    for shard in shards:
        _sync(directory / shard.file_name)
    if len(shards) > 1:
        _write_index(directory, shards)


def _published_tensors(model: Any, groups: Iterable[tuple[Any, Mapping[str, Tensor]]]) -> Iterator[tuple[str, Tensor]]:
    """Published name -> tensor, group by group, each tied parameter once; then the persistent buffers."""
    tied, seen = model.all_tied_weights_keys, set()
    for _, tensors in groups:
        fresh = {tied.get(name, name): tensor.detach() for name, tensor in tensors.items()}
        fresh = {name: tensor for name, tensor in fresh.items() if name not in tied.values() or name not in seen}
        seen.update(fresh)
        yield from revert_weight_conversion(model, fresh).items()
    yield from revert_weight_conversion(model, persistent_buffers(model)).items()


def _write_tensor(path: Path, data_start: int, place: Place, tensor: Tensor) -> None:
    if tuple(tensor.shape) != place.shape:
        raise WeightsError(f"{place.name} is {list(tensor.shape)}, but {list(place.shape)} in the model")
    with open(path, "r+b") as file:
        file.seek(data_start + place.start)
        for chunk in tensor.reshape(-1).split(CHUNK_ELEMENTS):
            file.write(chunk.to("cpu", place.dtype).contiguous().view(torch.uint8).numpy().data)


def _write_index(directory: Path, shards: list[Shard]) -> None:
    index = {
        "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
        "weight_map": {place.name: shard.file_name for shard in shards for place in shard.places},
    }
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _write_config(directory: Path, model: Any, config: Any, dtype: torch.dtype) -> None:
    config = deepcopy(config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)


def _copy_companions(source: Path, directory: Path) -> None:
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, directory / file.name)


def _publish(incoming: Path, out_dir: Path) -> None:
    """Rename everything into place. `from_pretrained` prefers the single file to the index, which gives the order."""
    names = {file.name for file in incoming.iterdir()}
    last = INDEX_FILE if INDEX_FILE in names else SINGLE_FILE
    for name in sorted(names, key=lambda name: name == last):
        _sync(incoming / name)
        os.replace(incoming / name, out_dir / name)
    (out_dir / (SINGLE_FILE if last == INDEX_FILE else INDEX_FILE)).unlink(missing_ok=True)
    _sync(out_dir)
    for stale in out_dir.glob("model-*-of-*.safetensors"):
        if stale.name not in names:
            stale.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
