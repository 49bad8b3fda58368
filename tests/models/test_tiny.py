"""A shrunk configuration builds and runs, is tiny, and differs from the real one in sizes only."""

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM

from slideformer.models.tiny import WINDOW_TOKENS, shrink

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 4096,
    "short_factor": [1.0 + 0.02 * i for i in range(48)], "long_factor": [1.0 + 1.3 * i for i in range(48)],
}  # fmt: skip

# In the shape of the published models, with each family's odd sizes and flags.
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-3.1-8B": ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
        "rope_parameters": LLAMA3_ROPE, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    }),
    "Qwen3-4B": ("qwen3", {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_window_layers": 36, "eos_token_id": 151645, "bos_token_id": 151643,
    }),
    "Qwen3-30B-A3B": ("qwen3_moe", {
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
        "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }),
    "Gemma-2-9B": ("gemma2", {
        "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000, "sliding_window": 4096,
        "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    }),
    "Phi-3-mini-4k": ("phi3", {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32064, "sliding_window": 2047, "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000,
    }),
    "Phi-3-mini-128k": ("phi3", {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32064, "sliding_window": 262144, "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096, "rope_parameters": LONGROPE, "pad_token_id": 32000,
    }),
    "Mistral-7B": ("mistral", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096,
    }),
    "gpt2": ("gpt2", {}),
    "opt-350m": ("opt", {
        "hidden_size": 1024, "word_embed_proj_dim": 512, "ffn_dim": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "do_layer_norm_before": False, "vocab_size": 50272, "pad_token_id": 1,
    }),
    "opt-1.3b": ("opt", {
        "hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "vocab_size": 50272, "pad_token_id": 1,
    }),
}  # fmt: skip


def real_config(name: str) -> Any:
    family, values = REAL[name]
    return AutoConfig.for_model(family, **values)


def check_builds_and_runs(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert model.num_parameters() < 1_000_000
    with torch.no_grad():
        logits = model(input_ids=torch.randint(3, config.vocab_size, (1, 3 * WINDOW_TOKENS))).logits
    assert logits.shape[-1] == config.vocab_size and torch.isfinite(logits).all()
    return model


@pytest.mark.parametrize("name", REAL)
def test_real_configurations(name: str) -> None:
    config = real_config(name)
    before = config.to_dict()
    model = check_builds_and_runs(shrink(config))
    assert config.to_dict() == before
    assert 3 <= len(model.get_decoder().layers if hasattr(model.get_decoder(), "layers") else model.transformer.h) <= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_already_tiny_configurations(family: str) -> None:
    check_builds_and_runs(shrink(tiny_config(family)))


SIZES = {
    "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "num_experts", "num_local_experts", "num_experts_per_tok",
    "sliding_window", "layer_types", "max_window_layers", "n_embd", "n_layer", "n_head", "ffn_dim",
    "word_embed_proj_dim", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(REAL) - {"Phi-3-mini-128k"}))
def test_only_sizes_change(name: str) -> None:
    config = real_config(name)
    before, after = config.to_dict(), shrink(config).to_dict()
    assert {key for key in before if before[key] != after[key]} <= SIZES


def test_longrope_factors_are_thinned_out_to_the_new_rotary_width() -> None:
    tiny = shrink(real_config("Phi-3-mini-128k"))
    pairs = tiny.hidden_size // tiny.num_attention_heads // 2
    for name in ("short_factor", "long_factor"):
        factors = tiny.rope_parameters[name]
        assert len(factors) == pairs and factors == [LONGROPE[name][i * 48 // pairs] for i in range(pairs)]
    assert tiny.rope_parameters["original_max_position_embeddings"] == 4096


@pytest.mark.parametrize(("kv_heads", "expected"), [(32, 4), (8, 2), (1, 1)])
def test_grouping_of_heads_stays_of_its_kind(kv_heads: int, expected: int) -> None:
    config = AutoConfig.for_model("llama", num_attention_heads=32, num_key_value_heads=kv_heads)
    assert shrink(config).num_key_value_heads == expected


def test_non_square_attention_stays_non_square() -> None:
    tiny = shrink(real_config("Qwen3-4B"))
    assert tiny.num_attention_heads * tiny.head_dim != tiny.hidden_size
    tiny = shrink(real_config("Llama-3.1-8B"))
    assert tiny.num_attention_heads * tiny.head_dim == tiny.hidden_size


def test_narrow_embeddings_stay_narrow() -> None:
    tiny = shrink(real_config("opt-350m"))
    assert tiny.word_embed_proj_dim == tiny.hidden_size // 2
    assert shrink(real_config("opt-1.3b")).word_embed_proj_dim == tiny.hidden_size


def test_alternating_attention_keeps_both_kinds_in_order() -> None:
    tiny = shrink(real_config("Gemma-2-9B"))
    assert tiny.layer_types == ["sliding_attention", "full_attention"] * 2
    assert tiny.sliding_window == WINDOW_TOKENS


def test_a_rare_layer_kind_is_kept() -> None:
    config = AutoConfig.for_model("gemma3_text")  # one full layer in six
    assert set(shrink(config).layer_types) == set(config.layer_types)
    assert shrink(config).layer_types[-1] == "full_attention"


def test_dense_layers_among_experts_are_kept() -> None:
    config = AutoConfig.for_model("qwen3_moe", num_hidden_layers=24, mlp_only_layers=[5, 6])
    tiny = shrink(config)
    assert tiny.mlp_only_layers == [2, 3] and tiny.num_hidden_layers == 4
    model = check_builds_and_runs(tiny)
    assert [hasattr(layer.mlp, "experts") for layer in model.model.layers] == [True, True, False, False]


def test_every_second_layer_of_experts() -> None:
    tiny = shrink(AutoConfig.for_model("qwen3_moe", num_hidden_layers=24, decoder_sparse_step=2))
    model = check_builds_and_runs(tiny)
    assert [hasattr(layer.mlp, "experts") for layer in model.model.layers] == [False, True, False]


def test_first_dense_layers_and_expert_groups() -> None:
    config = AutoConfig.for_model("deepseek_v3")
    tiny = shrink(config)
    model = check_builds_and_runs(tiny)
    assert [hasattr(layer.mlp, "experts") for layer in model.model.layers] == [False, False, True, True]
    assert tiny.first_k_dense_replace == 2
    assert tiny.routed_scaling_factor == config.routed_scaling_factor


def test_special_tokens_are_in_the_vocabulary() -> None:
    tiny = shrink(real_config("Llama-3.1-8B"))
    assert tiny.bos_token_id == 1 and tiny.eos_token_id == [2] and tiny.pad_token_id is None
