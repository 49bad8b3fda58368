"""What a config says to read: tokenizer, records, prompts; and batches of the records."""

from pathlib import Path
from typing import Any

from rich.console import Console

from slideformer.data.batches import BatchStream
from slideformer.data.examples import Examples
from slideformer.data.held_out import hold_out, longest_first
from slideformer.data.load import Encoding, LoadedData, apply_chat_template, load_data
from slideformer.data.prompts import read_prompts, stop_ids
from slideformer.data.show import show
from slideformer.engine.sampling import Decoding
from slideformer.models.hub import read_config, resolve
from slideformer.prepare.prompts import Prompts, make_prompts
from slideformer.settings.config import Config

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def show_data(config: Config, samples: int) -> None:
    """Print what the run would train on, to standard output."""
    path = resolve(config.model, config.trust_remote_code)
    model_config = read_config(path, config.trust_remote_code)
    tokenizer = load_tokenizer(path, config)
    data, _ = read_data(config, tokenizer, model_config.get_text_config().vocab_size)
    show(
        data,
        tokenizer,
        names=[str(source.path) for source in config.data.all_sources()],
        packed=batch_stream(config, data, 0, packing=True).rows(0),
        max_length=config.max_length,
        samples=samples,
        console=Console(),
    )


def read_data(config: Config, tokenizer: Any, vocabulary: int) -> tuple[LoadedData, Examples | None]:
    """The examples to train on, and those to evaluate on."""
    on = config.data
    encoding = Encoding(config.max_length, config.too_long, vocabulary, on.train_on, on.cache_dir, on.on_error)
    data, held_out = load_data(config.data.all_sources(), tokenizer, encoding), None
    if config.eval_size:
        data, held_out = hold_out(data, config.eval_size, config.seed)
    elif sources := config.eval_data.all_sources():
        held_out = load_data(sources, tokenizer, encoding).examples
    return data, None if held_out is None else longest_first(held_out)


def read_sample_prompts(config: Config, tokenizer: Any, model_path: Path, model_config: Any) -> Prompts | None:
    """What is answered between two steps."""
    if not config.sample_prompts:
        return None
    texts = read_prompts(config.sample_prompts)
    stop = stop_ids(model_path, model_config, tokenizer)
    decoding = Decoding(config.sample_max_new_tokens, stop, config.sample_temperature, seed=config.seed)
    return make_prompts(texts, tokenizer, model_path, model_config, decoding, config.sample_raw)


def pad_id_of(tokenizer: Any) -> int:
    """The token id that fills a batch up; it is never trained."""
    return (tokenizer.pad_token_id or 0) if tokenizer else 0


def batch_stream(config: Config, data: LoadedData, pad_id: int, packing: bool) -> BatchStream:
    """Batches by step number, packed or not."""
    return BatchStream(
        data.examples,
        config.batch_size,
        shuffle=config.data.shuffle,
        seed=config.seed,
        pad_id=pad_id,
        mixture=data.mixture,
        row_length=config.max_length if packing else None,
    )


def load_tokenizer(model_path: Path, config: Config) -> Any:
    """The model's tokenizer with the run's chat template; None where it has none: tokenized records need none."""
    tokenizer = tokenizer_of(model_path, config.trust_remote_code)
    apply_chat_template(config.data, tokenizer)
    return tokenizer


def tokenizer_of(model_path: Path, trust_remote_code: bool) -> Any:
    """The tokenizer in a model's directory, or None."""
    from transformers import AutoTokenizer

    if not any((model_path / name).exists() for name in TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
