"""Finding and reading safetensors files, and refusing everything else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slideformer.errors import WeightsError
from slideformer.models.weight_files import INDEX_FILE, SINGLE_FILE, WeightFiles, few


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def test_reads_shards_through_the_index(tmp_path: Path) -> None:
    a, b = torch.randn(3, 2), torch.arange(4, dtype=torch.bfloat16)
    save_file({"a": a}, tmp_path / "one.safetensors")
    save_file({"b": b}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    files = WeightFiles(tmp_path)
    assert files.headers["b"].shape == (4,) and files.headers["b"].dtype == torch.bfloat16
    read = files.read(["b", "a"])
    assert torch.equal(read["a"], a) and torch.equal(read["b"], b)


def test_read_maps_the_file_instead_of_copying_it(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4096)}, tmp_path / SINGLE_FILE)
    value = WeightFiles(tmp_path).read(["a"])["a"]
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(tmp_path / SINGLE_FILE) in mapped.read_text()
    del value
    if mapped.exists():
        assert str(tmp_path / SINGLE_FILE) not in mapped.read_text()


def test_pickled_weights_are_refused_with_the_conversion_command(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin") as caught:
        WeightFiles(tmp_path)
    assert "save_pretrained" in caught.value.hint


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=SINGLE_FILE):
        WeightFiles(tmp_path)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / SINGLE_FILE)
    content = (tmp_path / SINGLE_FILE).read_bytes()
    (tmp_path / SINGLE_FILE).write_bytes(content[:-100])
    with pytest.raises(WeightsError, match=SINGLE_FILE):
        WeightFiles(tmp_path)


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / SINGLE_FILE)
    with pytest.raises(WeightsError, match="quantized"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_damaged_index(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(WeightsError, match="index"):
        WeightFiles(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "model-00001-of-00002.safetensors"})
    with pytest.raises(WeightsError, match="model-00001-of-00002"):
        WeightFiles(tmp_path)


def test_index_cannot_leave_its_directory(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    write_index(tmp_path / "model", {"a": "../secret.safetensors"})
    with pytest.raises(WeightsError, match="outside"):
        WeightFiles(tmp_path / "model")


def test_few() -> None:
    assert few(["a", "b"]) == "a, b"
    assert few(list("abcdefg")) == "a, b, c, d, e and 2 more"
