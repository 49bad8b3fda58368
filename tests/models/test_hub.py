"""Where a model is, and which models are refused from their configuration."""

import json
from pathlib import Path

import pytest
from tiny_models import FAMILIES, tiny_config
from transformers import AutoConfig

from slideformer.errors import ConfigError, UnsupportedModel
from slideformer.models.hub import read_config, resolve


def save_config(directory: Path, **values: object) -> Path:
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def test_a_directory_is_itself(tmp_path: Path) -> None:
    save_config(tmp_path, model_type="llama")
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/model", "a/b/c", "~/no-such-model"])
def test_a_path_that_is_not_there_never_reaches_the_network(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slideformer.models.hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError, match="not a directory"):
        resolve(model)


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        resolve(str(tmp_path))


def test_a_hub_id_downloads_only_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    save_config(tmp_path, model_type="llama")

    def download(repo_id: str, **options: list[str]) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr("slideformer.models.hub.snapshot_download", download)
    assert resolve("owner/name") == tmp_path
    assert asked["repo_id"] == "owner/name"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not {"*", "*.bin", "*.pt", "*.py"} & set(asked["allow_patterns"])


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("slideformer.models.hub.snapshot_download", download)
    with pytest.raises(ConfigError, match="no route to host") as caught:
        resolve("owner/name")
    assert "path of a model directory" in caught.value.hint


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_are_read(tmp_path: Path, family: str) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    assert read_config(tmp_path).model_type == family


@pytest.mark.parametrize(("model_type", "reason"), [("t5", "encoder-decoder"), ("vit", "no causal language model")])
def test_other_models_are_refused(tmp_path: Path, model_type: str, reason: str) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=reason):
        read_config(tmp_path)


def test_quantized_models_are_refused(tmp_path: Path) -> None:
    save_config(tmp_path, model_type="llama", quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedModel, match="quantized"):
        read_config(tmp_path)


def test_unknown_model_type(tmp_path: Path) -> None:
    save_config(tmp_path, model_type="llama99")
    with pytest.raises(UnsupportedModel, match="llama99"):
        read_config(tmp_path)


def test_code_in_the_directory_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "configuration_x.py").write_text("raise SystemExit('this code ran')\n")
    save_config(tmp_path, model_type="x", auto_map={"AutoConfig": "configuration_x.XConfig"})
    with pytest.raises(UnsupportedModel, match="needs Python code"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '"llama"', '{"model_type": "llama", "hidden_size": "wide"}'])
def test_damaged_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises((ConfigError, UnsupportedModel)):
        read_config(tmp_path)
