"""Small unit states with random contents."""

from collections.abc import Callable

import pytest
from made_up_units import random_units

from slideformer.storage.checkpoint import UnitState


@pytest.fixture
def make_units() -> Callable[[int], dict[str, UnitState]]:
    return random_units
