"""A tiny byte-level tokenizer, trained in a moment, with a ChatML template."""

import pytest
from tiny_tokenizers import tiny_tokenizer
from transformers import PreTrainedTokenizerFast


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()
