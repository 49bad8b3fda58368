"""What a transformers configuration says layer by layer, and the same for a part of its layers."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from slideformer.errors import ConfigError

LAYER_NUMBERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "hybrid_layer_ids", "ple_layer_ids")
FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "max_window_layers")


def first_layers(config: Any, count: int) -> Any:
    """A copy of `config` (of its text model's part, where it has several) with only the first layers.

    Raises:
        ConfigError: it does not say how many layers it has, or has fewer, or says how layers differ in a way that is
            not known here.
    """
    cut = deepcopy(config)
    text = cut.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise ConfigError(f"blocks: {count}, but the configuration has no num_hidden_layers", "leave blocks out")
    if not 1 <= count <= layers:
        raise ConfigError(f"blocks: {count}, but the model has {layers}", f"choose 1 to {layers}")
    if text.to_dict().get("per_layer_config"):
        raise ConfigError("blocks: the configuration has overrides for single layers", "leave blocks out")
    keep_layers(text, config.get_text_config(), range(count))
    return cut


def keep_layers(target: Any, config: Any, kept: Sequence[int]) -> None:
    """Write what `config` says of its layers `kept` into `target`, a copy of it."""
    count = config.num_hidden_layers
    for name in per_layer_lists(config, count):
        value = getattr(config, name)
        setattr(target, name, type(value)(value[i] for i in kept))
    for name in LAYER_NUMBERS:
        if isinstance(numbers := getattr(config, name, None), list):
            setattr(target, name, [new for new, old in enumerate(kept) if old in numbers])
    for name in present(config, FIRST_LAYERS):
        setattr(target, name, sum(i < getattr(config, name) for i in kept))
    for name in present(config, ["num_kv_shared_layers"]):
        setattr(target, name, sum(i >= count - getattr(config, name) for i in kept))
    for name in present(config, ["moe_layer_end_index"]):
        setattr(target, name, len(kept) - 1)
    if getattr(config, "num_blocks", None) == count:
        target.num_blocks = len(kept)
    target.num_hidden_layers = len(kept)


def present(config: Any, names: Sequence[str]) -> list[str]:
    """The names whose attribute is a positive whole number that can be set."""
    computed = {name for name in names if isinstance(getattr(type(config), name, None), property)}
    values = {name: getattr(config, name, None) for name in names if name not in computed}
    return [name for name, v in values.items() if isinstance(v, int) and not isinstance(v, bool) and v > 0]


def per_layer_lists(config: Any, count: int) -> list[str]:
    """Names of the lists with one entry per layer."""
    return [
        name
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple))
        and len(value) == count
        and name not in LAYER_NUMBERS
        and not name.endswith(("token_id", "architectures"))
    ]
