"""What `stream_out` writes is what `from_pretrained` and `save_pretrained` agree on; a failure changes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES, layer_groups, meta_model, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from slideformer.errors import WeightsError
from slideformer.models.stream_out import INCOMING, stream_out
from slideformer.models.weight_files import INDEX_FILE, SINGLE_FILE, WeightFiles

Groups = Iterator[tuple[Any, dict[str, Tensor]]]


def grouped(model: Any) -> Groups:
    parameters = dict(model.named_parameters())
    for key, names in layer_groups(model).items():
        yield key, {name: parameters[name] for name in names}


def write(directory: Path, model: Any, groups: Groups | None = None, **options: Any) -> None:
    stream_out(directory, meta_model(model.config), model.config, groups or grouped(model), **options)


def assert_loads_as(directory: Path, model: Any, dtype: torch.dtype) -> None:
    loaded, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        directory, dtype="auto", output_loading_info=True
    )
    assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(dtype)), name
    assert type(loaded) is type(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_equal_in_one_file_and_in_shards(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    write(tmp_path / "one", model, dtype=torch.float32)
    write(tmp_path / "many", model, dtype=torch.float32, max_shard_bytes=100_000)
    assert (tmp_path / "one" / SINGLE_FILE).exists() and not (tmp_path / "one" / INDEX_FILE).exists()
    assert len(list((tmp_path / "many").glob("model-0000?-of-*.safetensors"))) >= 3
    assert_loads_as(tmp_path / "one", model, torch.float32)
    assert_loads_as(tmp_path / "many", model, torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_save_pretrained(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "theirs")
    write(tmp_path / "ours", model)
    assert WeightFiles(tmp_path / "ours").headers.keys() == WeightFiles(tmp_path / "theirs").headers.keys()


def test_values_are_rounded_to_the_dtype_and_the_config_says_so(tmp_path: Path) -> None:
    model = tiny_model("llama")
    write(tmp_path, model, dtype=torch.bfloat16)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["architectures"] == ["LlamaForCausalLM"]
    assert_loads_as(tmp_path, model, torch.bfloat16)


def test_parameters_that_stay_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, meta = tiny_model("llama"), meta_model(tiny_model("llama").config)
    meta._keep_in_fp32_modules_strict = {"k_proj"}
    stream_out(tmp_path, meta, model.config, grouped(model))
    stored = load_file(tmp_path / SINGLE_FILE)
    assert {name for name, value in stored.items() if value.dtype == torch.float32} == {
        f"model.layers.{i}.self_attn.k_proj.weight" for i in range(3)
    }
    assert torch.equal(
        stored["model.layers.1.self_attn.k_proj.weight"],
        model.get_parameter("model.layers.1.self_attn.k_proj.weight"),
    )


def test_tied_head_is_left_out_under_any_name(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    embedding = model.get_input_embeddings().weight
    rest = {name: p for name, p in model.named_parameters() if p is not embedding}
    for number, names in enumerate((["lm_head.weight"], ["lm_head.weight", "model.embed_tokens.weight"])):
        groups = iter([("rest", rest), *((name, {name: embedding}) for name in names)])
        write(tmp_path / str(number), model, groups, dtype=torch.float32)
        assert "lm_head.weight" not in load_file(tmp_path / str(number) / SINGLE_FILE)
        assert_loads_as(tmp_path / str(number), model, torch.float32)


def test_tensors_larger_than_a_chunk_and_non_contiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slideformer.models.stream_out.CHUNK_ELEMENTS", 1000)
    model = tiny_model("llama")

    def transposed(tensor: Tensor) -> Tensor:
        return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor

    groups = ((key, {name: transposed(t) for name, t in tensors.items()}) for key, tensors in grouped(model))
    write(tmp_path, model, groups, dtype=torch.float32)
    assert_loads_as(tmp_path, model, torch.float32)


def test_tokenizer_files_come_along_and_weights_do_not(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (source / name).write_text(name)
    for name in ("adapter_config.json", "pytorch_model.bin", "config.json"):
        (source / name).write_text("not this one")
    write(tmp_path / "out", tiny_model("llama"), tokenizer_from=source)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json",
        SINGLE_FILE,
    }  # fmt: skip
    assert "not this one" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("before", [10**9, 100_000])
@pytest.mark.parametrize("after", [10**9, 100_000, 60_000])
def test_replaces_an_earlier_model_and_nothing_else(tmp_path: Path, before: int, after: int) -> None:
    old, new = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    write(tmp_path, old, dtype=torch.float32, max_shard_bytes=before)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    write(tmp_path, new, dtype=torch.float32, max_shard_bytes=after)
    assert_loads_as(tmp_path, new, torch.float32)
    listed = {header.file.name for header in WeightFiles(tmp_path).headers.values()}
    assert {file.name for file in tmp_path.glob("*.safetensors")} == listed
    assert (tmp_path / "metrics.jsonl").exists() and not (tmp_path / INCOMING).exists()


@pytest.mark.parametrize("before", [10**9, 100_000])
@pytest.mark.parametrize("after", [10**9, 100_000])
def test_killed_at_any_rename_leaves_the_old_model_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    import slideformer.models.stream_out as module

    old, new = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    real_replace, real_unlink = module.os.replace, Path.unlink
    outcomes = []
    for survived in range(30):
        directory = tmp_path / str(survived)
        write(directory, old, dtype=torch.float32, max_shard_bytes=before)
        left = survived

        def may_go_on() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        def replace(source: Path, target: Path) -> None:
            may_go_on()
            real_replace(source, target)

        def unlink(self: Path, missing_ok: bool = False) -> None:
            may_go_on()
            real_unlink(self, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(module.os, "replace", replace)
            patch.setattr(Path, "unlink", unlink)
            try:
                write(directory, new, dtype=torch.float32, max_shard_bytes=after)
                finished = True
            except KeyboardInterrupt:
                finished = False
        files = WeightFiles(directory)  # prefers one file to an index, as from_pretrained does
        stored = files.read(files.headers)
        is_new, is_old = (
            all(torch.equal(stored[name], value) for name, value in model.state_dict().items()) for model in (new, old)
        )
        assert is_new or is_old
        outcomes.append(is_new)
        if finished:
            break
    assert finished and outcomes[0] is False and outcomes == sorted(outcomes)


def test_a_failure_leaves_the_earlier_model_untouched(tmp_path: Path) -> None:
    old, new = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    write(tmp_path, old, dtype=torch.float32, max_shard_bytes=100_000)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def failing() -> Groups:
        yield next(grouped(new))
        raise RuntimeError("worker died")

    with pytest.raises(RuntimeError, match="worker died"):
        write(tmp_path, new, failing(), dtype=torch.float32, max_shard_bytes=100_000)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_leftovers_of_a_killed_run_do_not_get_in(tmp_path: Path) -> None:
    (tmp_path / INCOMING).mkdir()
    (tmp_path / INCOMING / "model-00001-of-00009.safetensors").write_bytes(b"half a shard")
    write(tmp_path, tiny_model("llama"))
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", SINGLE_FILE}


def test_a_parameter_that_is_not_given_is_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    groups = ((key, tensors) for key, tensors in grouped(model) if key != 2)
    with pytest.raises(WeightsError, match=r"9 parameters were not given: model\.layers\.2\."):
        write(tmp_path, model, groups)
    assert not list(tmp_path.iterdir())


def test_unknown_and_misshapen_parameters_are_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(WeightsError, match="surprise"):
        write(tmp_path, model, iter([("x", {"surprise": torch.zeros(1)})]))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight is \[65\]"):
        write(tmp_path, model, iter([("x", {"model.norm.weight": torch.zeros(65)})]))
