"""Shapes of published models, to be filled with random weights."""

from typing import Any

from transformers import LlamaConfig, MistralConfig, Qwen3Config

SHAPES: dict[str, Any] = {
    "tiny": lambda: LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, tie_word_embeddings=True, max_position_embeddings=2048,
    ),
    "smollm2-135m": lambda: LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=8192,
    ),
    "qwen3-0.6b": lambda: Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=40960,
    ),
    "qwen3-4b": lambda: Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=40960,
    ),
    "llama-3.1-8b": lambda: LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=131072,
    ),
    "qwen3-14b": lambda: Qwen3Config(
        hidden_size=5120, intermediate_size=17408, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=False, max_position_embeddings=40960,
    ),
    "qwen3-32b": lambda: Qwen3Config(
        hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=False, max_position_embeddings=40960,
    ),
    "llama-3.3-70b": lambda: LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=131072,
    ),
    "mistral-large-123b": lambda: MistralConfig(
        hidden_size=12288, intermediate_size=28672, num_hidden_layers=88, num_attention_heads=96, num_key_value_heads=8,
        head_dim=128, vocab_size=32768, tie_word_embeddings=False, max_position_embeddings=131072, sliding_window=None,
    ),
}  # fmt: skip
