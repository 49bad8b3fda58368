"""The safetensors files of a model directory: every header at once, values on demand."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slideformer.errors import WeightsError
from slideformer.storage.tensor_file import DTYPES

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
DOWNLOAD_AGAIN = "download the model again; the copy is incomplete or damaged"


@dataclass(frozen=True)
class Header:
    """Where a tensor is, and what."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def on_meta(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class WeightFiles:
    """The tensors of a model directory, by their names in the files.

    Args:
        path: a directory with `model.safetensors`, or with shards and their index.

    Raises:
        WeightsError: no weights, a missing or damaged file, pickled or quantized weights.
    """

    def __init__(self, path: Path):
        self.path = path
        self.headers: dict[str, Header] = {}
        for file in find_weight_files(path):
            self.headers.update(_read_headers(file))

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Memory-mapped tensors; not to be written to.

        Files are opened anew each time, so that pages read before do not count as this process's memory.
        """
        keys_of_file: dict[Path, list[str]] = {}
        for key in keys:
            keys_of_file.setdefault(self.headers[key].file, []).append(key)
        tensors: dict[str, Tensor] = {}
        for file, file_keys in keys_of_file.items():
            with safe_open(file, framework="pt") as opened:
                tensors.update({key: opened.get_tensor(key) for key in file_keys})
        return tensors


def find_weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model directory.

    Raises:
        WeightsError: there are none, the index is damaged, or a shard that it names is not there.
    """
    if (path / SINGLE_FILE).is_file():
        return [path / SINGLE_FILE]
    index = path / INDEX_FILE
    if not index.is_file():
        raise _no_safetensors(path)
    try:
        names = list(dict.fromkeys(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} is not an index of safetensors shards: {error!r}", hint=DOWNLOAD_AGAIN) from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise WeightsError(f"{index} names a file outside its directory: {outside[0]!r}", hint=DOWNLOAD_AGAIN)
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        raise WeightsError(f"{path} lacks shards that its index names: {few(absent)}", hint=DOWNLOAD_AGAIN)
    return [path / name for name in names]


def _no_safetensors(path: Path) -> WeightsError:
    pickles = sorted(file.name for file in path.glob("*") if file.suffix in PICKLE_SUFFIXES)
    if not pickles:
        return WeightsError(
            f"{path} holds no {SINGLE_FILE} and no {INDEX_FILE}",
            hint="give a directory written by save_pretrained, or a hub id whose repository has safetensors",
        )
    convert = f"from_pretrained({str(path)!r}).save_pretrained({str(path) + '-safetensors'!r})"
    return WeightsError(
        f"{path} holds only pickled weights ({few(pickles)}), which can run code when opened and are not read",
        hint=f'if you trust them: python -c "from transformers import AutoModelForCausalLM as M; M.{convert}"',
    )


def _read_headers(file: Path) -> dict[str, Header]:
    entries = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118  a handle, not a dict: iterating it is not supported
                entry = opened.get_slice(key)
                entries[key] = (tuple(entry.get_shape()), entry.get_dtype())
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is not a whole safetensors file: {error}", hint=DOWNLOAD_AGAIN) from error
    quantized = [f"{key} ({dtype})" for key, (_, dtype) in entries.items() if dtype not in DTYPES]
    if quantized:
        raise WeightsError(
            f"{file} holds quantized weights: {few(quantized)}",
            hint="full-parameter training needs the unquantized model (bf16, fp16 or fp32)",
        )
    return {key: Header(file, shape, DTYPES[dtype]) for key, (shape, dtype) in entries.items()}


def few(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
