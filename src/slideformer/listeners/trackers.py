"""Experiment trackers, through the callbacks that transformers has for them."""

import difflib
from collections.abc import Sequence

from transformers import TrainerCallback
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from slideformer.errors import ConfigError

# Where the package to install is not named as the tracker.
PACKAGES = {"azure_ml": "azureml-core mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}
ALL = "all"


def tracker_callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    """The callbacks of the named trackers; "all": of those that are installed.

    Raises:
        ConfigError: a tracker is not known, or not installed; with the command that installs it.
    """
    if ALL in names:
        names = get_available_reporting_integrations()
    return [_callback(name) for name in names]


def _callback(name: str) -> TrainerCallback:
    known = list(INTEGRATION_TO_CALLBACK)
    if name not in known:
        near = next(iter(difflib.get_close_matches(name, known, n=1)), None)
        hint = f"did you mean {near}?" if near else f"choose from {', '.join(known)}, all or none"
        raise ConfigError(f"report_to: {name} is not a tracker that transformers knows", hint)
    (kind,) = get_reporting_integration_callbacks([name])
    try:
        return kind()
    except (RuntimeError, ImportError, AssertionError) as error:  # how they say that their package is missing
        install = f"pip install {PACKAGES.get(name, name)}"
        raise ConfigError(f"report_to: {name} cannot be used: {error}", install) from error
