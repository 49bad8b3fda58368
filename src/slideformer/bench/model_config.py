"""The configuration of the model that a case trains."""

from typing import Any

from slideformer.bench.case import Case
from slideformer.bench.shapes import SHAPES
from slideformer.errors import ConfigError
from slideformer.models.hub import read_config, resolve
from slideformer.models.layer_lists import first_layers


def config_of(case: Case) -> Any:
    """A case's configuration, with as many of its blocks as the case asks for.

    Raises:
        ConfigError: there is no such model, or it has not so many blocks.
    """
    config = model_config(case.model)
    return config if case.blocks is None else first_layers(config, case.blocks)


def model_config(model: str) -> Any:
    """The configuration of a shape, or of a model directory or hub id."""
    if model in SHAPES:
        return SHAPES[model]()
    try:
        return read_config(resolve(model))
    except ConfigError as error:
        raise ConfigError(error.message, f"{error.hint}; or a shape: {', '.join(SHAPES)}") from None
