import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slideformer.errors import CheckpointError
from slideformer.storage.tensor_file import Digest, parse_header, read_tensors, write_tensors


def tensors() -> dict[str, torch.Tensor]:
    return {
        "hi": torch.arange(256).to(torch.bfloat16),
        "lo": torch.arange(256).to(torch.int16),
        "moment": torch.linspace(-1, 1, 130).view(2, 65),
        "empty": torch.empty(0),
    }


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path):
    digest = write_tensors(tmp_path / "a", tensors())
    content = (tmp_path / "a").read_bytes()
    assert digest == Digest(len(content), hashlib.sha256(content).hexdigest())
    read = load_file(tmp_path / "a")
    assert read.keys() == tensors().keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in tensors().items())


def test_what_is_written_is_read_into_memory_that_is_there(tmp_path: Path):
    digest = write_tensors(tmp_path / "a", tensors())
    into = {name: torch.zeros_like(value) for name, value in tensors().items()}
    assert read_tensors(tmp_path / "a", into) == digest
    assert all(torch.equal(into[name], value) for name, value in tensors().items())


def test_files_of_the_safetensors_library_are_read(tmp_path: Path):
    save_file({"a": torch.arange(8.0)}, tmp_path / "a")
    read_tensors(tmp_path / "a", into := {"a": torch.zeros(8)})
    assert torch.equal(into["a"], torch.arange(8.0))


def test_an_existing_file_is_never_written_over(tmp_path: Path):
    write_tensors(tmp_path / "a", tensors())
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "a", tensors())


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_short(tmp_path: Path, kept: int):
    write_tensors(tmp_path / "a", tensors())
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut short|no safetensors header"):
        read_tensors(tmp_path / "a", tensors())


def test_a_file_with_more_behind_it(tmp_path: Path):
    write_tensors(tmp_path / "a", tensors())
    with (tmp_path / "a").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="longer than its header says"):
        read_tensors(tmp_path / "a", tensors())


def test_other_names_shapes_or_dtypes(tmp_path: Path):
    write_tensors(tmp_path / "a", {"x": torch.zeros(4)})
    for other in ({"y": torch.zeros(4)}, {"x": torch.zeros(2, 2)}, {"x": torch.zeros(4, dtype=torch.int32)}, {}):
        with pytest.raises(CheckpointError, match="expected"):
            read_tensors(tmp_path / "a", other)


def test_a_link_is_not_followed(tmp_path: Path):
    write_tensors(tmp_path / "a", tensors())
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_tensors(tmp_path / "link", tensors())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
    ],
)
def test_headers_that_are_none(text: bytes):
    with pytest.raises(CheckpointError):
        parse_header(text, "a file")
