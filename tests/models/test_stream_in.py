"""What `stream_in` yields equals what `from_pretrained` loads, and mismatches are named before anything is read."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, layer_groups, meta_model, save_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from slideformer.errors import WeightsError
from slideformer.models import weight_files
from slideformer.models.hub import read_config
from slideformer.models.stream_in import stream_in
from slideformer.models.weight_files import INDEX_FILE, SINGLE_FILE


def read_all(path: Path) -> dict[str, Tensor]:
    model = meta_model(read_config(path))
    groups = layer_groups(model)
    parameters: dict[str, Tensor] = {}
    for key, tensors in stream_in(path, model, groups):
        assert list(tensors) == groups[key]
        parameters |= {name: tensor.clone() for name, tensor in tensors.items()}
    return parameters


def rewrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / SINGLE_FILE, {"format": "pt"})


def assert_as_loaded(parameters: Mapping[str, Tensor], path: Path) -> None:
    expected = dict(AutoModelForCausalLM.from_pretrained(path, dtype="auto").named_parameters())
    assert parameters.keys() == expected.keys()
    for name, value in parameters.items():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_from_pretrained(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    path = save_tiny_model(tmp_path, family, dtype)
    assert_as_loaded(read_all(path), path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_shards(tmp_path: Path, family: str) -> None:
    path = save_tiny_model(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    (path / SINGLE_FILE).unlink()
    model.save_pretrained(path, max_shard_size="100KB")
    assert (path / INDEX_FILE).exists()
    assert_as_loaded(read_all(path), path)


def test_moe_files_hold_experts_one_by_one(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "qwen3_moe")
    assert "model.layers.0.mlp.experts.3.down_proj.weight" in load_file(path / SINGLE_FILE)
    assert read_all(path)["model.layers.0.mlp.experts.gate_up_proj"].shape == (4, 64, 64)


@pytest.mark.parametrize(("family", "prefix"), [("llama", "model."), ("gpt2", "transformer."), ("opt", "model.")])
def test_files_of_the_base_model_lack_the_prefix(tmp_path: Path, family: str, prefix: str) -> None:
    path = save_tiny_model(tmp_path, family, tie_word_embeddings=True)
    expected = read_all(path)
    rewrite(path, {name.removeprefix(prefix): value for name, value in load_file(path / SINGLE_FILE).items()})
    assert not any(name.startswith(prefix) for name in load_file(path / SINGLE_FILE))
    found = read_all(path)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_tied_weights_may_be_stored_under_either_name_or_both(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "qwen3")
    stored = load_file(path / SINGLE_FILE)
    embedding = stored["model.embed_tokens.weight"]
    rest = {name: value for name, value in stored.items() if value is not embedding}
    assert "lm_head.weight" not in stored
    for names in (["lm_head.weight"], ["lm_head.weight", "model.embed_tokens.weight"]):
        rewrite(path, rest | {name: embedding.clone() for name in names})
        assert torch.equal(read_all(path)["model.embed_tokens.weight"], embedding)
    rewrite(path, rest | {"lm_head.weight": embedding + 1, "model.embed_tokens.weight": embedding})
    with pytest.raises(WeightsError, match="tie_word_embeddings"):
        read_all(path)


def test_tied_weights_can_be_asked_for_by_either_name(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "qwen3")
    embedding = load_file(path / SINGLE_FILE)["model.embed_tokens.weight"]
    groups = {"head": ["lm_head.weight"], "embedding": ["model.embed_tokens.weight"]}
    for key, tensors in stream_in(path, meta_model(read_config(path)), groups):
        assert list(tensors) == groups[key]
        assert torch.equal(tensors[groups[key][0]], embedding)


def test_buffers_of_older_files_are_skipped(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "gpt2")
    expected = read_all(path)
    extra = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8), "transformer.h.0.attn.masked_bias": torch.ones(1)}
    rewrite(path, load_file(path / SINGLE_FILE) | extra)
    assert read_all(path).keys() == expected.keys()


def test_missing_extra_and_misshapen_are_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny_model(tmp_path, "llama")
    stored = load_file(path / SINGLE_FILE)
    del stored["model.layers.1.mlp.up_proj.weight"]
    stored["model.layers.0.surprise"] = torch.zeros(1)
    stored["model.norm.weight"] = torch.zeros(65)
    rewrite(path, stored)
    monkeypatch.setattr(weight_files.WeightFiles, "read", lambda *_: pytest.fail("read a tensor"))
    model = meta_model(read_config(path))
    with pytest.raises(WeightsError) as caught:
        stream_in(path, model, layer_groups(model))  # not even iterated
    assert "1 missing: model.layers.1.mlp.up_proj.weight" in caught.value.message
    assert "1 unexpected: model.layers.0.surprise" in caught.value.message
    assert "model.norm.weight is [65] in the files and [64] in the model" in caught.value.message


def test_at_most_five_names_and_a_count(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "llama")
    rewrite(path, {"model.norm.weight": torch.zeros(64)})
    with pytest.raises(WeightsError, match="and 24 more") as caught:
        read_all(path)
    assert caught.value.message.count("weight") == 5


def test_experts_of_different_shapes_are_named(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "qwen3_moe")
    stored = load_file(path / SINGLE_FILE)
    stored["model.layers.0.mlp.experts.2.up_proj.weight"] = torch.zeros(31, 64)
    rewrite(path, stored)
    with pytest.raises(WeightsError, match=r"layers\.0\.mlp\.experts\.gate_up_proj cannot be made"):
        read_all(path)


def test_missing_experts_are_noticed(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "qwen3_moe")
    stored = load_file(path / SINGLE_FILE)
    del stored["model.layers.2.mlp.experts.3.down_proj.weight"]
    rewrite(path, stored)
    with pytest.raises(WeightsError, match=r"layers\.2\.mlp\.experts\.down_proj"):
        read_all(path)


def test_each_tensor_is_read_once_and_one_group_lives_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny_model(tmp_path, "qwen3_moe")
    read: list[str] = []
    original = weight_files.WeightFiles.read

    def recording(self: weight_files.WeightFiles, keys: object) -> dict[str, Tensor]:
        tensors = original(self, keys)  # type: ignore[arg-type]
        read.extend(tensors)
        return tensors

    monkeypatch.setattr(weight_files.WeightFiles, "read", recording)
    model = meta_model(read_config(path))
    previous: dict[str, Tensor] = {}
    for _, tensors in stream_in(path, model, layer_groups(model)):
        assert not previous
        previous = tensors
    assert sorted(read) == sorted(load_file(path / SINGLE_FILE))
