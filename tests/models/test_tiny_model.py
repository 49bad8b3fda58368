"""What a tiny model tells of its architecture."""

import pytest
from transformers import AutoConfig

from slideformer.errors import UnsupportedModel
from slideformer.models.tiny import shrink
from slideformer.models.tiny_model import check_causal


@pytest.mark.parametrize("model_type", ["bert", "xlm"])
def test_a_model_that_sees_later_tokens_is_refused(model_type: str):
    config = shrink(AutoConfig.for_model(model_type))
    with pytest.raises(UnsupportedModel, match="is not causal: a token sees those behind it"):
        check_causal(config)


def test_an_encoder_set_up_as_a_decoder_is_causal():
    check_causal(AutoConfig.for_model("bert", is_decoder=True))
