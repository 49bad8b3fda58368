"""Tokenized examples on disk, found again by everything that decided them."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file

from slideformer.data.examples import DataReport, Examples
from slideformer.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("input_ids", "labels", "bounds", "indices")
Encoded = tuple[Examples, DataReport]


def cached(directory: Path | None, key: Callable[[], str], make: Callable[[], Encoded]) -> Encoded:
    """What `make` gives, from `directory` if it was made before under the same `key`; without a directory, made.

    A file appears under its name only when it is whole, so a kill leaves none that is not.
    """
    if directory is None:
        return make()
    path = directory.expanduser() / f"{key()}.safetensors"
    if path.is_file():
        return _read(path)
    encoded = make()
    _write(path, *encoded)
    return encoded


def cache_key(content: str, tokenizer: "PreTrainedTokenizerBase | None", settings: dict[str, Any]) -> str:
    """A hash of the records' content, the tokenizer with its template, the settings, and the code in this directory."""
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    parts = [content, _identity(tokenizer), json.dumps(settings, sort_keys=True), *code]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(tokenizer: "PreTrainedTokenizerBase | None") -> str:
    if tokenizer is None:
        return "none"
    import tokenizers
    import transformers

    template = json.dumps(tokenizer.chat_template)
    today = date.today().isoformat() if "strftime_now" in template else ""  # such a template writes the date
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    model = backend.to_str() if backend is not None else repr(tokenizer)
    specials = json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True)
    return "\n".join((model, template, specials, today, tokenizers.__version__, transformers.__version__))


def _read(path: Path) -> Encoded:
    with safe_open(path, framework="pt") as file:
        report = DataReport(**json.loads(file.metadata()["report"]))
        return Examples(*(file.get_tensor(column) for column in COLUMNS)), report


def _write(path: Path, examples: Examples, report: DataReport) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    except OSError as error:
        message = f"data.cache_dir: cannot write to {path.parent}: {error.strerror}"
        raise DataError(message, hint="set data.cache_dir to another directory, or to null") from None
    os.close(handle)
    try:
        columns = {column: getattr(examples, column) for column in COLUMNS}
        save_file(columns, name, metadata={"report": json.dumps(vars(report))})
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
