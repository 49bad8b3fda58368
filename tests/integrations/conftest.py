"""A tiny model with a tokenizer of single characters."""

from pathlib import Path

import pytest
from tiny_models import save_tiny_model
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
CHARACTERS = [chr(code) for code in range(32, 127)]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>{% endgeneration %}"
    "{% else %}{{ m.content }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def character_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(SPECIAL + CHARACTERS)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex("."), "isolated")  # type: ignore[assignment]  # the stubs lack the setter
    backend.decoder = Fuse()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = save_tiny_model(tmp_path_factory.mktemp("model"), "qwen3", eos_token_id=2)
    character_tokenizer().save_pretrained(path)
    return str(Path(path))
