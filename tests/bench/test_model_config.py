"""A case may ask for the first blocks only: what is built, counted and trained has no others."""

import pytest

from slideformer.bench.case import Case
from slideformer.bench.model_config import config_of, model_config
from slideformer.bench.sliding import Subject
from slideformer.errors import ConfigError


def case(blocks: int | None) -> Case:
    return Case("tiny", 2, 16, blocks=blocks, device="cpu", threads=1, matmul_flops=1e9)


def test_all_blocks_unless_asked():
    assert config_of(case(None)).to_dict() == model_config("tiny").to_dict()


def test_the_first_blocks_at_full_width():
    whole, cut = Subject(case(None)), Subject(case(3))
    assert cut.decoder.block_names == whole.decoder.block_names[:3]
    shapes = whole.decoder.parameter_shapes
    assert all(shape == shapes[name] for name, shape in cut.decoder.parameter_shapes.items())
    assert cut.operations is not None and whole.operations is not None
    assert cut.operations.blocks == whole.operations.blocks[:3]
    assert len(cut.plan(2).model.blocks) == 3


def test_more_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="blocks: 5, but the model has 4"):
        Subject(case(5))
