"""Which directory a model is in, and what its configuration says."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    StrictDataclassError,
)
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from slideformer.errors import ConfigError, UnsupportedModel

CONFIG_FILE = "config.json"
WANTED_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "LICENSE*"]
UNWANTED_FILES = ["*/*.safetensors", "consolidated*.safetensors"]  # the same weights in another format


def resolve(model: str, trust_remote_code: bool = False) -> Path:
    """The local directory of a model: itself, or a hub repository's files (only safetensors, config, tokenizer).

    The network is used only for a hub id that is not a directory here.

    Raises:
        ConfigError: no such directory, not a model's directory, or the hub does not give it.
    """
    path = Path(model).expanduser()
    if not path.is_dir():
        if path.exists() or model.startswith(("/", ".", "~")) or model.count("/") > 1:
            raise ConfigError(f"model: {model} is not a directory", hint="give a model directory or a hub id")
        path = _download(model, trust_remote_code)
    if not (path / CONFIG_FILE).is_file():
        raise ConfigError(f"model: {path} has no {CONFIG_FILE}", hint="give a directory written by save_pretrained")
    return path


def _download(repo_id: str, trust_remote_code: bool) -> Path:
    wanted = [*WANTED_FILES, "*.py"] if trust_remote_code else WANTED_FILES
    try:
        return Path(snapshot_download(repo_id, allow_patterns=wanted, ignore_patterns=UNWANTED_FILES))
    except GatedRepoError as error:
        raise ConfigError(f"model: {repo_id} is gated", hint="accept its terms, then: hf auth login") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"model: {repo_id} is neither a directory here nor a repository on the hub",
            hint="check the spelling; for a private repository: hf auth login",
        ) from error
    except Exception as error:  # offline, timeouts, disk full: the hub client raises many kinds
        raise ConfigError(
            f"model: {repo_id} is not a directory here and could not be downloaded ({error})",
            hint="check the network, or give the path of a model directory",
        ) from error


def read_config(path: Path, trust_remote_code: bool = False) -> Any:
    """The `PretrainedConfig` of a causal language model.

    Raises:
        ConfigError: config.json cannot be read.
        UnsupportedModel: not a causal language model, quantized, or of a type that transformers does not know.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise _unreadable(path, error) from error
    except (OSError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ConfigError(f"{path / CONFIG_FILE} cannot be read: {error}", hint="is it a model's?") from error
    refuse_unsupported(config)
    return config


def _unreadable(path: Path, error: ValueError) -> Exception:
    if "trust_remote_code" in str(error):
        return UnsupportedModel(
            f"the model in {path} needs Python code from its own directory",
            hint="read that code; if you trust it, set trust_remote_code: true",
        )
    return UnsupportedModel(
        f"transformers cannot read {path / CONFIG_FILE}: {str(error).splitlines()[0]}",
        hint="a newer version may know the model: pip install --upgrade transformers",
    )


def refuse_unsupported(config: Any) -> None:
    """Raise UnsupportedModel unless `config` is an unquantized, decoder-only causal language model."""
    kind = f"{config.model_type} ({type(config).__name__})"
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{kind} is an encoder-decoder model", hint="only decoder-only models can be trained")
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote:
        raise UnsupportedModel(f"{kind} has no causal language model", hint="choose a decoder such as Llama or Qwen3")
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel(
            f"{kind} is quantized", hint="full-parameter training needs the unquantized model (bf16, fp16 or fp32)"
        )
