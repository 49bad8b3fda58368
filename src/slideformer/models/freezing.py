"""Which parameters are trained, by patterns of their names."""

import re
from collections.abc import Iterable, Sequence

from slideformer.errors import ConfigError

HINT = (
    "parameters are named as in the model's safetensors files; a pattern is a regular expression found anywhere in one"
)


def frozen_names(names: Iterable[str], trainable: Sequence[str] = (), frozen: Sequence[str] = ()) -> frozenset[str]:
    """The parameters that are not trained: all but those that a `trainable` pattern matches, where there are any, and
    those that a `frozen` pattern matches.

    Args:
        names: of all parameters.
        trainable, frozen: regular expressions, searched in each name.

    Raises:
        ConfigError: a pattern is no regular expression or matches nothing, or nothing is left to train.
    """
    names = list(names)
    chosen = _matched(names, "trainable", trainable) if trainable else set(names)
    left = chosen - _matched(names, "frozen", frozen)
    if not left:
        raise ConfigError("trainable and frozen leave no parameter to train", "give frozen fewer patterns")
    return frozenset(names) - left


def _matched(names: list[str], setting: str, patterns: Sequence[str]) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        try:
            found = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            raise ConfigError(f"{setting}: {pattern!r} is not a regular expression: {error}", HINT) from None
        if not found:
            raise ConfigError(f"{setting}: {pattern!r} matches no parameter, such as {names[len(names) // 2]}", HINT)
        matched |= found
    return matched
