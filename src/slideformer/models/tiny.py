"""A tiny configuration of the same architecture: every kind of layer, every flag that changes arithmetic, few numbers.

Transformers' configurations share most attribute names, and map their own (`n_embd`) onto the common ones
(`hidden_size`), so sizes are replaced by name. Whatever is not named here, such as soft-caps, scales, biases, norms and
activations, stays as it is.
"""

from copy import deepcopy
from typing import Any

from transformers import PretrainedConfig

from slideformer.models.layer_lists import FIRST_LAYERS, LAYER_NUMBERS, keep_layers, per_layer_lists, present

HIDDEN, HEADS, VOCABULARY, EXPERTS, WINDOW_TOKENS, MIN_LAYERS = 64, 4, 256, 4, 8, 3

# widths, which keep their ratio to hidden_size
WIDTHS = (
    "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "word_embed_proj_dim", "embedding_size",
    "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "dense_intermediate_size",
    "moe_shared_expert_intermediate_size", "shared_experts_intermediate_size", "intermediate_size_mlp",
    "expert_ffn_hidden_size", "hidden_size_per_layer_input", "attention_hidden_size", "lru_width", "router_hidden_size",
    "decoder_ffn_dim", "encoder_ffn_dim", "dff", "d_inner", "emb_dim", "embedding_dim", "mamba_d_ssm",
)  # fmt: skip
# widths of one attention head or of a projection between heads, divided by HEAD_SCALE
HEAD_WIDTHS = (
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank", "o_lora_rank",
    "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "index_head_dim", "swa_head_dim",
)  # fmt: skip
HEAD_SCALE = 8
ALL_HEADS = ("encoder_attention_heads", "decoder_attention_heads")
HEAD_COUNTS = ("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads", "index_n_heads")
# heads of a state-space mixer and the width of one
MIXER_HEADS = (
    ("mamba_n_heads", "mamba_d_head"), ("mamba_num_heads", "mamba_head_dim"), ("n_mamba_heads", "mamba_headdim"),
    ("num_heads", "head_dim"),
)  # fmt: skip
MIXER_HEAD_DIM = 8
GROUP_COUNTS = ("n_groups", "mamba_n_groups", "mamba_ngroups", "n_group", "num_expert_group")
KV_HEAD_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "swa_num_key_value_heads")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
WINDOWS = (
    "sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size", "window_size",
    "local_attention", "index_topk",
)  # fmt: skip
PERIODS = ("decoder_sparse_step", "moe_layer_interval", "attn_layer_period", "expert_layer_period", "layer_group_size")


def shrink(config: PretrainedConfig) -> Any:
    """A copy of `config` that builds a model of well under a million parameters.

    Hidden size, heads (MHA, GQA or MQA as before), head and MLP widths, experts, vocabulary and attention windows
    become small; layers become the fewest that show each kind of layer, at least three.
    """
    if overrides := config.to_dict().get("per_layer_config"):
        return _shrink_with_overrides(config, {int(layer): values for layer, values in overrides.items()})
    tiny = deepcopy(config)
    for name, part in list(vars(config).items()):
        if isinstance(part, PretrainedConfig) and hasattr(part, "num_hidden_layers"):
            setattr(tiny, name, shrink(part))
    if not hasattr(config, "hidden_size"):  # a wrapper around the text model's configuration
        return tiny
    _shrink_layers(tiny, config)
    _shrink_heads(tiny, config)
    _shrink_widths(tiny, config)
    _shrink_experts(tiny, config)
    _shrink_vocabulary(tiny)
    for name in present(tiny, WINDOWS):
        setattr(tiny, name, min(getattr(tiny, name), WINDOW_TOKENS))
    return tiny


def _shrink_with_overrides(config: Any, overrides: dict[int, dict[str, Any]]) -> Any:
    """Shrink a configuration that says some things layer by layer: the layers keep their ratio to the others."""
    flat = type(config)(**{**config.to_dict(), "per_layer_config": None})
    # One entry per layer: layers with other overrides are of another kind, and the list is thinned out as they are.
    flat.overrides = [tuple(overrides.get(i, {}).items()) for i in range(config.num_hidden_layers)]
    tiny = shrink(flat)
    settings = {name: value for name, value in tiny.to_dict().items() if name != "overrides"}
    settings["per_layer_config"] = {
        i: {name: max(1, getattr(tiny, name) * value // getattr(flat, name)) for name, value in values}
        for i, values in enumerate(tiny.overrides)
        if values
    }
    return type(config)(**settings)


def _shrink_widths(tiny: Any, config: Any) -> None:
    for name in present(config, WIDTHS):
        setattr(tiny, name, _multiple_of_8(getattr(config, name) * HIDDEN / config.hidden_size))
    for heads, head_dim in MIXER_HEADS:
        if len(present(config, (heads, head_dim))) == 2:
            inner = getattr(config, heads) * getattr(config, head_dim)
            setattr(tiny, heads, max(1, inner * HIDDEN // config.hidden_size // MIXER_HEAD_DIM))
            setattr(tiny, head_dim, MIXER_HEAD_DIM)
    for name in present(config, GROUP_COUNTS):
        setattr(tiny, name, min(getattr(config, name), 2))
    tiny.hidden_size = HIDDEN


def _multiple_of_8(value: float) -> int:
    return max(8, round(value / 8) * 8)


def _shrink_heads(tiny: Any, config: Any) -> None:
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    square = heads * head_dim == config.hidden_size  # else keep the projections to and from heads non-square
    tiny_head_dim = HIDDEN // HEADS if square else 2 * HIDDEN // HEADS
    for name in present(config, KV_HEAD_COUNTS):
        count = getattr(config, name)
        setattr(tiny, name, HEADS if count == heads else 1 if count == 1 else HEADS // 2)
    for name in present(config, ALL_HEADS):
        setattr(tiny, name, HEADS)
    if present(config, ["attention_hidden_size", "attention_head_dim"]):
        tiny.attention_head_dim = HIDDEN * config.attention_hidden_size // config.hidden_size // HEADS
    for name in present(config, HEAD_COUNTS):
        setattr(tiny, name, max(1, HEADS * getattr(config, name) // heads))
    for name in present(config, HEAD_WIDTHS):
        setattr(tiny, name, _multiple_of_8(getattr(config, name) / HEAD_SCALE))
    if present(config, ["head_dim"]):
        rope_dim = getattr(config, "qk_rope_head_dim", None)
        tiny.head_dim = tiny.qk_rope_head_dim if rope_dim == head_dim else tiny_head_dim
    if present(config, ["qk_head_dim"]):
        tiny.qk_head_dim = tiny.qk_nope_head_dim + tiny.qk_rope_head_dim
    if present(config, ["rotary_dim"]):
        tiny.rotary_dim = _multiple_of_8(config.rotary_dim * tiny_head_dim / head_dim)
    tiny.num_attention_heads = HEADS
    _resize_rope(getattr(tiny, "rope_parameters", None), tiny_head_dim / head_dim)


def _resize_rope(parameters: Any, scale: float) -> None:
    """Thin out lists with one number per rotated pair (long and short factors, sections), in place."""
    if not isinstance(parameters, dict):
        return
    for name, value in parameters.items():
        _resize_rope(value, scale)  # parameters by layer type
        if name in ("short_factor", "long_factor"):
            count = int(len(value) * scale)
            parameters[name] = [value[i * len(value) // count] for i in range(count)]
        elif name == "mrope_section":
            parameters[name] = [max(1, int(section * scale)) for section in value]


def _shrink_experts(tiny: Any, config: Any) -> None:
    for name in present(config, EXPERT_COUNTS):
        setattr(tiny, name, min(getattr(config, name), EXPERTS))
    for name in present(config, CHOSEN_EXPERTS):
        setattr(tiny, name, min(getattr(config, name), 2))
    if present(config, ["topk_group"]):
        tiny.topk_group = 1


def _shrink_vocabulary(tiny: Any) -> None:
    for name in present(tiny, ["vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"]):
        setattr(tiny, name, VOCABULARY)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    for name, value in list(vars(tiny).items()):
        if not name.endswith(("_token_id", "_token_index")):
            continue
        small = special.get(name, VOCABULARY - 1)
        if isinstance(value, list):
            setattr(tiny, name, [small])
        elif isinstance(value, int) and value >= VOCABULARY:
            setattr(tiny, name, small)


def _shrink_layers(tiny: Any, config: Any) -> None:
    count = config.num_hidden_layers
    if not isinstance(count, int):
        return
    keep_layers(tiny, config, _layers_to_keep(config, count))


def _layers_to_keep(config: Any, count: int) -> list[int]:
    """The first two layers of each kind, as some share weights within a kind, and at least MIN_LAYERS; all layers up to
    those where a period decides the kind."""
    of_kind: dict[tuple[Any, ...], list[int]] = {}
    for i in range(count):
        of_kind.setdefault(_kind(config, count, i), []).append(i)
    firsts = [i for layers in of_kind.values() for i in layers[:2]]
    period = max((getattr(config, name) for name in present(config, PERIODS)), default=1)
    if period > 1:
        return list(range(min(count, max(MIN_LAYERS, period, *(layers[0] + 1 for layers in of_kind.values())))))
    kept = set(firsts)
    kept.update([i for i in range(count) if i not in kept][: max(0, MIN_LAYERS - len(kept))])
    return sorted(kept)


def _kind(config: Any, count: int, i: int) -> tuple[Any, ...]:
    """What is said about layer i in particular."""
    lists = [getattr(config, name)[i] for name in per_layer_lists(config, count)]
    numbers = [i in numbers for name in LAYER_NUMBERS if isinstance(numbers := getattr(config, name, None), list)]
    firsts = [i < getattr(config, name) for name in present(config, FIRST_LAYERS)]
    shared = [i >= count - getattr(config, name) for name in present(config, ["num_kv_shared_layers"])]
    return (*lists, *numbers, *firsts, *shared)
