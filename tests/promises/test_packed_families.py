"""Promise "packed exactly or refused", for every causal language model that transformers has and that trains here."""

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slideformer.engine.parity import check_parity
from slideformer.errors import UnsupportedModel


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_packed_exactly_or_refused(family: str):
    config = trained_unpacked(family)
    try:
        assert check_parity(config, packed=True).exact
    except UnsupportedModel as refusal:
        assert "pack" in refusal.message and "packing: false" in refusal.hint


def trained_unpacked(family: str):
    """The family's default configuration; skips the test where that does not train as it is."""
    try:
        config = AutoConfig.for_model(family)
        check_parity(config)
    except Exception as error:
        pytest.skip(f"its default configuration does not train: {error!r}")
    return config
