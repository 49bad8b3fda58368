"""Tiny random Hugging Face models of nine families, as directories on disk."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 128
LLAMA_SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA_SIZES,
    "qwen2": LLAMA_SIZES,
    "qwen3": LLAMA_SIZES | dict(head_dim=16, tie_word_embeddings=True),
    "mistral": LLAMA_SIZES | dict(head_dim=16, sliding_window=16),
    "gemma2": LLAMA_SIZES | dict(head_dim=16, num_hidden_layers=4, sliding_window=16, query_pre_attn_scalar=16),
    "phi3": LLAMA_SIZES | dict(sliding_window=None),
    "gpt2": dict(
        vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_positions=128,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    ),
    "opt": dict(
        vocab_size=VOCAB, hidden_size=64, word_embed_proj_dim=64, ffn_dim=96, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=128, dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "qwen3_moe": LLAMA_SIZES
    | dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, mlp_only_layers=[1]),
}  # fmt: skip


def tiny_config(family: str, **changes: Any) -> Any:
    """The tiny configuration of a family, with changes on top."""
    return AutoConfig.for_model(family, **(FAMILIES[family] | changes))


def tiny_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny fp32 model with random weights, norms and biases included (HF starts those at 1 and 0)."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def save_tiny_model(directory: Path, family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save a tiny random model as its family is published; returns the directory."""
    tiny_model(family, **changes).to(dtype).save_pretrained(directory)
    return directory


def save_tiny_tokenizer(directory: Path, chat_template: str | None = None) -> Path:
    """Save a tokenizer of the words w3 ... w127, with the special tokens of the tiny models; returns the directory."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    words = special | {f"w{i}": i for i in range(3, VOCAB)}
    backend = Tokenizer(WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = Whitespace()  # type: ignore[assignment]  # the stubs lack the setter's type
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=chat_template
    )
    tokenizer.save_pretrained(directory)
    return directory


def meta_model(config: Any) -> Any:
    """The model with its parameters on the meta device and its buffers computed."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model


def layer_groups(model: Any) -> dict[Any, list[str]]:
    """Parameter names by layer number; everything else under "rest"."""
    groups: dict[Any, list[str]] = {"rest": []}
    for name, _ in model.named_parameters():
        number = next((int(part) for part in name.split(".") if part.isdigit()), "rest")
        groups.setdefault(number, []).append(name)
    return groups
