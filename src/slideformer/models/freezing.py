"""Which parameters are trained, by patterns of their names, and what the run says of it."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod

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


def trained_in_words(
    shapes: Mapping[str, tuple[int, ...]],
    frozen: Collection[str],
    unused: Collection[str],
    patterns: Mapping[str, Sequence[str]],
) -> str | None:
    """One line for the user: how much is trained, what is not, and why; None where all of it is trained.

    Args:
        shapes: of all parameters.
        frozen: names of those that are not trained, with `unused`, which text never reaches.
        patterns: setting -> its regular expressions.
    """
    if not frozen:
        return None
    trained = _counted(shapes, [name for name in shapes if name not in frozen])
    reasons = [f"{setting}: {', '.join(given)}" for setting, given in patterns.items() if given]
    kept = [name for name in frozen if name not in unused]
    parts = [f"{_counted(shapes, kept)} frozen" + (f" ({'; '.join(reasons)})" if reasons else "")] if kept else []
    if unused:
        parts.append(f"{_counted(shapes, unused)} never reached by text, such as {min(unused)}")
    return f"trained: {trained}; not trained: {'; '.join(parts)}"


def _counted(shapes: Mapping[str, tuple[int, ...]], names: Collection[str]) -> str:
    parameters = sum(prod(shapes[name]) for name in names)
    return f"{parameters:,} parameters in {len(names):,} tensor{'s' if len(names) != 1 else ''}"
